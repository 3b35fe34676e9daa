"""A small model that exports in seconds, and ONNX files of it."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from depthzoo.models import DepthModel
from depthzoo.models.layers import DepthHead
from export import to_onnx
from export.graph import trace
from export.parity import Parity
from export.to_onnx import export_onnx
from tests.export.noise import noise


class Tiny(DepthModel):
    """Two levels down to stride 32 with a skip, BatchNorms, upsampling and a resized head."""

    name = "tiny"

    def __init__(self, guarded: bool = True) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(4, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.merge = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = DepthHead(4)
        self.guarded = guarded

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image)
        coarse = self.up(self.coarse(fine))
        if not self.guarded or coarse.shape[-2:] != fine.shape[-2:]:
            coarse = nn.functional.interpolate(coarse, size=fine.shape[-2:])
        return [self.up(self.up(self.head.logits(self.merge(torch.cat([coarse, fine], dim=1)))))]


def make_tiny(guarded: bool = True) -> Tiny:
    torch.manual_seed(0)
    model = Tiny(guarded)
    # A wider range of depth than a fresh head gives, and BatchNorms that do something.
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
def tiny_graph(tiny: Tiny) -> onnx.ModelProto:
    """The traced model. ``graph`` is a copy to change."""
    return trace(tiny)


@pytest.fixture
def graph(tiny_graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(tiny_graph)
    return copy


@pytest.fixture(scope="session")
def export_tiny(
    tiny: Tiny, tiny_graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Parity]]:
    """Export the tiny model, traced once, with any arguments of ``export_onnx``."""

    def export(**options: object) -> tuple[Path, Parity]:
        def copy(*_: object) -> onnx.ModelProto:
            graph = onnx.ModelProto()
            graph.CopyFrom(tiny_graph)
            return graph

        path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(to_onnx, "trace", copy)
            return path, export_onnx(tiny, path, **options)  # type: ignore[arg-type]

    return export


@pytest.fixture(scope="session")
def tiny_file(export_tiny: Callable[..., tuple[Path, Parity]]) -> Path:
    return export_tiny()[0]


@pytest.fixture(scope="session")
def fixed_file(export_tiny: Callable[..., tuple[Path, Parity]]) -> Path:
    return export_tiny(size=(64, 96))[0]


@pytest.fixture(scope="session")
def uint8_file(export_tiny: Callable[..., tuple[Path, Parity]]) -> Path:
    """The network at 64x96, with uint8 input of any size."""
    return export_tiny(size=(64, 96), uint8=True)[0]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
