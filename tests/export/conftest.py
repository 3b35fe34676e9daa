"""A model that exports in seconds and files of it that several tests share."""

from pathlib import Path

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
