"""`depthzoo list` and `depthzoo info`, with a card whose figures are known."""

from pathlib import Path

import pytest
import safetensors.torch

from depthzoo import cli, unet_mobilenet_v3, weights
from train.cards import write_weights

CARD = {
    "parameters": 3_479_473,
    "bytes": 7_100_000,
    "file": "unet_mobilenet_v3_nyu-1a2b3c4d.safetensors",
    "size": [224, 288],
    "depth_range": [0.001, 10.0],
    "unit": "m",
    "camera": {"name": "Kinect v1", "focal_px": 518.86, "at_width": 640},
    "metrics": {"protocol": "654 frames", "per_image": {"abs_rel": 0.2214, "d1": 0.6543}},
    "terms": "research use",
}


@pytest.fixture
def two_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """unet_mobilenet_v3 has weights "nyu" (default) and "old"; nothing else has any."""
    table = {"unet_mobilenet_v3": ("nyu", "old")}
    monkeypatch.setattr(weights, "tags", lambda model: table.get(model, ()))
    monkeypatch.setattr(weights, "card", lambda model, tag="DEFAULT": CARD)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, which is the command's."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("depthzoo: error: "), lines
    return lines[0]


def test_list_is_a_table(capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
    assert cli.main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["NAME", "PARAMETERS", "FILE", "SIZE", "ABSREL", "D1", "WEIGHTS"]
    assert ["unet_mobilenet_v3", "3.5M", "7.1", "MB", "224x288", "0.221", "0.654", "nyu,", "old"] in rows
    assert ["unet", "31.0M", "-", "-", "-", "-", "-"] in rows
    assert len(rows) == 7


def test_list_with_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "*resnet*"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["unet_resnet50", "unet_resnet50_heavy"]
    assert cli.main(["list", "unet_resnet"]) == 2
    assert "no model matches 'unet_resnet': did you mean 'unet_resnet50'" in error_of(capsys)


def test_info(capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
    assert cli.main(["info", "unet_mobilenet_v3"]) == 0
    text = capsys.readouterr().out
    for part in (
        "MobileNetV3-Large",
        "nyu (default)",
        "old",
        "3,479,473",
        "224x288",
        "518.86",
        "research use",
    ):
        assert part in text
    assert "Args:" not in text
    assert cli.main(["info", "unet_mobilnet"]) == 2
    assert "unknown model 'unet_mobilnet': did you mean 'unet_mobilenet_v3'" in error_of(capsys)


def test_info_without_weights(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "tags", lambda model: ())
    assert cli.main(["info", "unet_mobilenet_v3"]) == 0
    text = capsys.readouterr().out
    assert "none yet" in text and "3,479,473" in text


def test_info_of_a_file_and_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    model = unet_mobilenet_v3(weights=None)
    write_weights(model, run / "model.safetensors", {"tag": "mine", "size": [96, 128]})
    for path in (run, run / "model.safetensors"):
        assert cli.main(["info", str(path)]) == 0
        text = capsys.readouterr().out
        assert text.startswith("unet_mobilenet_v3\n") and "MobileNetV3-Large" in text
        assert str(run / "model.safetensors") in text and "96x128" in text and "MB" in text
    safetensors.torch.save_file(model.state_dict(), run / "plain.safetensors")
    for name, message in (
        ("plain.safetensors", "does not say which model it is for"),
        ("absent.safetensors", "weights file does not exist"),
    ):
        assert cli.main(["info", str(run / name)]) == 2
        assert message in error_of(capsys)
