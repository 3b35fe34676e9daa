"""The documentation: its code runs and does what it says, and its links lead somewhere."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import depthzoo
from depthzoo import losses
from depthzoo.weights import read_metadata


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_links(root: Path) -> None:
    pages = [
        path for path in root.rglob("*.md") if not path.relative_to(root).parts[0].startswith((".", "out"))
    ]
    assert root / "README.md" in pages and root / "docs" / "use.md" in pages
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("https://", "#")):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page}: {link}"


@pytest.mark.slow
def test_the_code_of_readme_and_use(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av, hub_load = pytest.importorskip("av"), torch.hub.load
    pytest.importorskip("trimesh")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        torch.hub, "load", lambda _, *args, **options: hub_load(root, *args, source="local", **options)
    )
    shutil.copy(root / "depthzoo" / "examples" / "desk.jpg", "photo.jpg")
    with av.open("tour.mp4", "w") as video:
        stream = video.add_stream("libx264", rate=5, options={"crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8))))
        video.mux(stream.encode())
    for page in ("README.md", "docs/use.md"):
        names: dict[str, Any] = {"torch": torch, "image": torch.rand(1, 3, 192, 256)}
        for block in python_blocks((root / page).read_text(encoding="utf-8")):
            exec(compile(block, page, "exec"), names)
        assert names["prediction"].depth.shape == (480, 640)
    assert names["depth"].shape == (1, 1, 192, 256)
    written = {"photo.depth.png", "photo.color.png", "photo.panel.png", "photo.ply", "photo.glb", "depth.mp4"}
    assert written <= {path.name for path in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "finetune.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_finetune(
    page: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    shutil.copytree(root / "depthzoo" / "examples", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block, "docs/finetune.md", "exec"), names)
    values = [float(value) for value in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(values) == 3 and values[-1] < values[0]
    saved, start = depthzoo.load("mine.safetensors"), depthzoo.load("unet_mobilenet_v3")
    assert (saved.max_depth, saved.card["size"], saved.card["terms"]) == (80.0, [192, 256], "mine")
    assert saved.card["metrics"]["per_image"]["abs_rel"] == names["metrics"].compute()["per_image"]["abs_rel"]
    # The encoder was frozen, its BatchNorm statistics too; the rest was trained.
    before, after = start.encoder.state_dict(), saved.encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    weights = [next(model.decoder.parameters()) for model in (start, saved)]
    assert not torch.equal(*weights)
    assert names["prediction"].depth.shape == (480, 640)
    assert read_metadata(Path("mine/model.safetensors"))["arguments"] == saved.arguments
    assert names["mean"].shape == names["log_variance"].shape == names["depth"].shape
    assert isinstance(names["loss"], losses.CombinedLoss)


def test_the_table_of_features(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d, ]+) \| ([\d, ]+) \|$", page, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == depthzoo.list_models()
    for name, strides, channels in rows:
        with torch.device("meta"):
            encoder = depthzoo.create_model(name, pretrained=False).encoder
        assert strides == ", ".join(map(str, encoder.strides))
        assert channels == ", ".join(map(str, encoder.out_channels))
