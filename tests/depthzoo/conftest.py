"""A tiny model, and a zoo that has only that one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from depthzoo import weights
from train.cards import publish, save

METRICS = {"protocol": "test", "per_image": {"abs_rel": 0.25}}


class Tiny(nn.Module):
    """Every kind of tensor that a model has: 4-D, 1-D, fp32 and int64 buffers, a buffer of two dimensions."""

    name = "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("grid", torch.full((2, 2), 1e6))


def make_tiny(seed: int = 0) -> Tiny:
    """Reproducible random weights, a variance that float16 cannot hold, a count that float32 cannot."""
    torch.manual_seed(seed)
    model = Tiny()
    with torch.no_grad():
        model.norm.running_var.fill_(1e5)
        model.norm.num_batches_tracked.fill_(2**40 + 1)
    return model


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    return make_tiny


@pytest.fixture
def one_line() -> Callable[[pytest.ExceptionInfo[BaseException]], str]:
    """Gives an error's message, having seen that it is one line."""

    def check(error: pytest.ExceptionInfo[BaseException]) -> str:
        text = str(error.value)
        assert len(text.splitlines()) == 1
        return text

    return check


class Zoo:
    """A table with one model, its file on a server's shelf, an empty cache and an empty checkout."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shelf, self.hub, self.bundled = root / "shelf", root / "hub", root / "checkout"
        self.bundled.mkdir()
        self.manifest = root / "manifest.json"
        source = save(make_tiny(), root / "saved", "nyu", {"metrics": METRICS})
        written = publish(source, weights.read_metadata(source), self.shelf, self.manifest)
        self.card = json.loads(written.read_text())
        self.good = (self.shelf / self.card["file"]).read_bytes()
        self.cached = self.hub / "checkpoints" / self.card["file"]
        monkeypatch.setattr(weights, "MANIFEST", self.manifest)
        monkeypatch.setattr(weights, "BUNDLED", self.bundled)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(self.hub))
        monkeypatch.setenv("no_proxy", "*")
        # Port 9 of loopback refuses: a test that forgets its server meets no network.
        monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", "http://127.0.0.1:9/release")

    def in_cache(self) -> list[str]:
        return [p.name for p in self.hub.rglob("*") if not p.is_dir()]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    return Zoo(tmp_path, monkeypatch)
