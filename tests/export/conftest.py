"""A model that exports in seconds and files of it that several tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from depthzoo.models import DepthModel, unet_mobilenet_v3
from depthzoo.models.blocks import DepthHead, Upsample2x, conv_bn_relu, match_size
from export.to_onnx import export_onnx


class Tiny(DepthModel):
    """Two levels down to stride 32, with a skip and all that the real ones have."""

    name = "tiny"

    def __init__(self, guarded: bool = True) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(4, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.up = Upsample2x()
        self.merge = conv_bn_relu(8, 4)
        self.head = DepthHead(4)
        self.guarded = guarded

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image)
        coarse = self.coarse(fine)
        if self.guarded:
            coarse = match_size(self.up(coarse), fine)
        else:
            coarse = nn.functional.interpolate(coarse, size=fine.shape[-2:])
        return [self.up(self.up(self.head.logits(self.merge(torch.cat([coarse, fine], dim=1)))))]


def make_tiny(guarded: bool = True) -> Tiny:
    torch.manual_seed(0)
    model = Tiny(guarded)
    # A wider spread of depth than a fresh head gives, and BatchNorms that do something.
    nn.init.normal_(model.head.conv.weight, std=1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model.eval()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def unguarded() -> Tiny:
    return make_tiny(guarded=False)


@pytest.fixture(scope="session")
def tiny_file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export_onnx(tiny, path)
    return path


@pytest.fixture(scope="session")
def tiny_fixed_file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_fixed") / "tiny_64x96.onnx"
    export_onnx(tiny, path, size=(64, 96))
    return path


@pytest.fixture(scope="session")
def mobilenet() -> DepthModel:
    torch.manual_seed(0)
    return unet_mobilenet_v3(weights=None).eval()


@pytest.fixture(scope="session")
def mobilenet_file(mobilenet: DepthModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobilenet") / "unet_mobilenet_v3.onnx"
    export_onnx(mobilenet, path)
    return path


@pytest.fixture(scope="session")
def uint8_file(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract of a file with uint8 input, around the same network at 64x96, made by hand."""
    model = onnx.load(tiny_file)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["resized" if name == "image" else name for name in node.input]
        node.output[:] = ["small" if name == "depth" else name for name in node.output]
    numbers = {
        "inner": np.array([64, 96]),
        "two": np.array([2]),
        "four": np.array([4]),
        "most": np.float32(255),
    }
    for name, value in numbers.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    node = onnx.helper.make_node
    linear: dict[str, Any] = {"mode": "linear", "axes": [2, 3]}
    before = [
        node("Transpose", ["image"], ["bytes"], perm=[0, 3, 1, 2]),
        node("Cast", ["bytes"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Div", ["floats", "most"], ["scaled"]),
        node("Resize", ["scaled", "", "", "inner"], ["resized"], antialias=1, **linear),
    ]
    after = [
        node("Shape", ["bytes"], ["shape"]),
        node("Slice", ["shape", "two", "four"], ["outer"]),
        node("Resize", ["small", "", "", "outer"], ["depth"], **linear),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    image = onnx.helper.make_tensor_value_info(
        "image", onnx.TensorProto.UINT8, ["batch", "height", "width", 3]
    )
    graph.input[0].CopyFrom(image)
    contract = {"name": "image", "type": "uint8", "layout": "NHWC", "range": [0, 255], "multiple_of": 1}
    for entry in model.metadata_props:
        entry.value = {"input": json.dumps(contract), "size": "[64, 96]"}.get(entry.key, entry.value)
    path = tmp_path_factory.mktemp("uint8") / "tiny_uint8.onnx"
    onnx.save(model, path)
    return path
