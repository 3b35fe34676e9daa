"""A model that exports in seconds and files of it that several tests share."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from depthzoo import unet_mobilenet_v3
from depthzoo.models import DepthModel
from depthzoo.models.base import DepthHead
from depthzoo.models.layers import Upsample2x, conv_bn_relu, match_size
from export import to_onnx
from export.graph import trace
from export.to_onnx import export_onnx
from train.codec import encode_depth, encode_image
from train.rooms import render
from train.shards import ShardWriter, write_dataset


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
def uint8_file(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network at 64x96, behind bytes of any size."""
    path = tmp_path_factory.mktemp("uint8") / "tiny_uint8.onnx"
    export_onnx(tiny, path, size=(64, 96), uint8=True)
    return path


@pytest.fixture(scope="session")
def tiny_graph(tiny: Tiny) -> onnx.ModelProto:
    """What ``trace`` makes of the tiny model; ``graph`` is a copy to change."""
    return trace(tiny)


@pytest.fixture
def graph(tiny_graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(tiny_graph)
    return copy


@pytest.fixture
def traced(graph: onnx.ModelProto, tiny_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the tiny model traced already, to be quick."""

    def copy(*_: object) -> onnx.ModelProto:
        graph.CopyFrom(tiny_graph)
        return graph

    monkeypatch.setattr(to_onnx, "trace", copy)


@pytest.fixture
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 is calibrated on four pictures, to be quick."""
    monkeypatch.setattr(to_onnx, "FRAMES", 4)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of nine synthetic rooms of 48x64, seven to train and two to validate."""
    folder = tmp_path_factory.mktemp("shards")
    splits = {}
    for split, seeds in {"train": range(7), "val": range(7, 9)}.items():
        with ShardWriter(folder, split) as writer:
            for seed in seeds:
                room = render(seed, size=(48, 64))
                writer.write(f"{seed:03d}", *encode_image(room.image), encode_depth(room.depth))
        splits[split] = {**writer.entry, "size": [48, 64], "focal_px": 51.9}
    write_dataset(folder, splits, source="kitchens", terms="MIT")
    return folder
