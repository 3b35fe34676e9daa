import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import demo
from depthzoo.models import DepthModel
from depthzoo.models.base import DepthHead

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_has_a_true_depth() -> None:
    image, truth, name = demo.example()
    assert image.dtype == np.uint8 and image.ndim == 3 and name
    assert truth is not None and truth.shape == image.shape[:2]
    assert 0.3 < np.median(truth[truth > 0]) < 10


def test_the_model_shown_has_weights_where_any_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, expected in [
        (["unet", "unet_mobilenet_v3", "unet_resnet50"], "unet_resnet50"),
        (["unet_mobilenet_v3"], "unet_mobilenet_v3"),
        ([], "unet_mobilenet_v3"),
    ]:
        monkeypatch.setattr(demo.zoo_weights, "models_with_weights", lambda known=known: known)
        assert demo.default_model() == expected


class Flat(DepthModel):
    """A head on the bare picture: exports in a moment."""

    name = "flat"

    def __init__(self) -> None:
        super().__init__()
        self.head = DepthHead(3, kernel=3)

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.head.logits(image)]


def test_everything_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Flat()
    asked: list[object] = []
    monkeypatch.setattr(torch.hub, "load", lambda *args, **options: asked.append((args, options)) or model)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = (image, generator.uniform(1, 5, (60, 80)).astype(np.float32), "noise")
    figures = demo.demonstrate("flat", None, picture, tmp_path, size=(64, 96))
    assert asked == [((str(ROOT), "flat"), {"source": "local", "trust_repo": True, "weights": None})]
    names = ["demo.json", "flat.onnx", "onnx.depth.png", "onnx.preview.png", "panel.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "demo.json").read_text()) == figures
    assert figures["picture_difference_m"]["max"] < 1e-3
    millimetres = np.asarray(Image.open(tmp_path / "onnx.depth.png"))
    assert millimetres.shape == (60, 80)
    assert abs(np.median(millimetres) / 1000 - figures["depth_m"]["median"]) < 2e-3
    out = capsys.readouterr().out
    assert "parity with PyTorch: max " in out
    # Latency has one table, that of benchmarks/latency.py: the Predictor's model here is no plain eager PyTorch.
    assert " ms" not in out and "latency_ms" not in figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.jpg"], "missing.jpg: no such file"),
        (["--image", "."], "folder"),
        (["--image", "text.jpg"], "text.jpg: not a picture"),
        (["--model", "unet_resnet"], "did you mean"),
        (["--weights", "nosuchtag"], "nosuchtag"),
        (["--image", "small.png", "--weights", "none", "--out", "text.jpg"], "text.jpg"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (40, 40)).save(tmp_path / "small.png")
    with pytest.raises(SystemExit) as exit_info:
        demo.main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("demo: error: ") and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_command_from_another_directory(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (90, 120, 60)).save(tmp_path / "photo.png")
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--image", "photo.png"]
    command += ["--model", "unet_mobilenet_v3", "--weights", "none", "--out", "result"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "result" / "demo.json").exists() and (tmp_path / "result" / "panel.png").exists()
