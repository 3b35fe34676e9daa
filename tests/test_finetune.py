"""docs/finetune.md: its code runs and does what it says."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import depthzoo
from depthzoo import losses
from depthzoo.weights import read_metadata


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "finetune.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_the_page(
    page: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    shutil.copytree(root / "depthzoo" / "examples", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
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
