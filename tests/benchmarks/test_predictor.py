"""benchmarks/predictor.py: what it times and stores."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.predictor import measure, parser, row, run
from export.run_onnx import Latency
from train.codec import encode_image
from train.rooms import render


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_image(render(17, (96, 128)).image)[1])
    return path


def test_rows_of_one_model(picture: Path) -> None:
    rows = {
        one["what"]: one for one in measure("unet_mobilenet_v3", (64, 96), picture, torch.device("cpu"), 3, 5)
    }
    assert set(rows) >= {"network", "Predictor, file", "Predictor, array", "step: decode"}
    assert all(one["model"] == "unet_mobilenet_v3" and one["runs"] == 3 for one in rows.values())
    # The picture's aspect at about as many pixels, in multiples of 32.
    assert rows["network"]["size"] == [64, 96]
    assert "over_forward" in rows["Predictor, file"] and "over_forward" not in rows["step: decode"]


def test_float32_is_float32(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        "benchmarks.predictor.interleave",
        lambda runs, *_, **__: (
            seen.append(torch.backends.cudnn.allow_tf32)
            or dict.fromkeys(runs, Latency(9.0, 10.0, 9.0, 12.0, 5))
        ),
    )
    measure("unet_mobilenet_v3", (64, 96), picture, torch.device("cpu"), 3, 5)
    assert seen == [False]


def test_share_over_the_network() -> None:
    network, whole = Latency(9.0, 10.0, 9.0, 12.0, 5), Latency(9.0, 11.5, 9.0, 12.0, 5)
    assert row("Predictor, file", "unet", (64, 96), whole, network)["over_forward"] == pytest.approx(0.15)


def test_run_is_stored_in_place_of_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predictor.json"
    words = ["unet_mobilenet_v3", "--sizes", "64x96", "--device", "cpu", "--rounds", "3", "--out", str(out)]
    for _ in range(2):
        assert run(parser().parse_args(words)) == 0
    (stored,) = json.loads(out.read_text())["runs"]
    assert stored["tf32"] is False
    assert stored["picture"] == [480, 640] and stored["machine"]["device"] == "cpu"
    assert {one["what"] for one in stored["rows"]} >= {"network", "Predictor, file"}
    assert "Predictor, file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unet_resnet"], "unet_resnet50"),
        (["--rounds", "1"], "--rounds 1: expected at least 3"),
        (["--out", "nowhere/p.json"], "nowhere does not exist"),
    ],
)
def test_bad_input(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(parser().parse_args(words))
