"""A tiny model, and a zoo that has only that one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from depthzoo import weights
from depthzoo.files import sha256_of, write_json


class Tiny(nn.Module):
    """Every kind of tensor that a model has: 4-D, 1-D, float32 and int64 buffers."""

    name = "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)


def make_tiny(seed: int = 0) -> Tiny:
    """Random weights, a variance that float16 cannot hold, a count that float32 cannot."""
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
    """Return an error's message, after a check that it is one line."""

    def check(error: pytest.ExceptionInfo[BaseException]) -> str:
        text = str(error.value)
        assert len(text.splitlines()) == 1
        return text

    return check


class Zoo:
    """A manifest with one model, its file in a release folder, an empty cache and an empty checkout."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release, self.hub, self.bundled = root / "release", root / "hub", root / "checkout"
        self.bundled.mkdir()
        unnamed = self.release / "tiny.safetensors"
        weights.save_weights(unnamed, make_tiny().state_dict(), {"model": "tiny", "tag": "nyu"})
        self.sha256 = sha256_of(unnamed)
        self.file = unnamed.rename(self.release / f"tiny_nyu-{self.sha256[:8]}.safetensors").name
        self.good = (self.release / self.file).read_bytes()
        self.entry = {"file": self.file, "sha256": self.sha256, "bytes": len(self.good)}
        self.cached = self.hub / "checkpoints" / self.file
        write_json(root / "manifest.json", {"tiny": {"nyu": self.entry}})
        monkeypatch.setattr(weights, "MANIFEST", root / "manifest.json")
        monkeypatch.setattr(weights, "BUNDLED", self.bundled)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(self.hub))
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", self.release.as_uri())

    def add(self, tag: str) -> None:
        manifest = json.loads(weights.MANIFEST.read_text())
        manifest["tiny"][tag] = self.entry
        weights.MANIFEST.write_text(json.dumps(manifest))

    def in_cache(self) -> list[str]:
        return [p.name for p in self.hub.rglob("*") if not p.is_dir()]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    return Zoo(tmp_path, monkeypatch)
