"""The accuracy of exported files: the script on a few frames, and what it recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import export_accuracy
from benchmarks.export_accuracy import LIMITS, RESULT, parser, run
from depthzoo import weights as zoo_weights
from depthzoo.models import DepthModel
from export.parity import Parity
from train.arguments import command
from train.codec import encode_depth, encode_image
from train.onnx_network import OnnxNetwork
from train.rooms import render
from train.shards import ShardWriter, write_dataset


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rooms to train and three to test, of 96x128."""
    folder = tmp_path_factory.mktemp("rooms")
    splits = {}
    for split, seeds in {"train": range(4), "val": range(4, 7), "test": range(7, 10)}.items():
        with ShardWriter(folder, split) as writer:
            for seed in seeds:
                room = render(seed, size=(96, 128))
                writer.write(f"{seed:03d}", *encode_image(room.image), encode_depth(room.depth))
        splits[split] = {**writer.entry, "size": [96, 128], "focal_px": 103.8}
    write_dataset(folder, splits, source="rooms", terms="MIT")
    return folder


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Files that are nothing but the model, its depth multiplied by a factor for each precision."""
    factors = dict.fromkeys(LIMITS, 1.0)

    def export(model: DepthModel, path: Path, *, precision: str, **_: object) -> Parity:
        path.write_text(precision)
        network = lambda image: model(image) * factors[precision]  # noqa: E731
        network.metadata = {"calibration": {"frames": 4}} if precision == "int8" else {}  # type: ignore[attr-defined]
        made[path] = network
        return Parity(0, 0, 0, 0, 0, {}, "trained weights", (), "rooms")

    made: dict[Path, OnnxNetwork] = {}
    monkeypatch.setattr(export_accuracy, "export_onnx", export)
    monkeypatch.setattr(export_accuracy, "OnnxNetwork", made.__getitem__)
    return factors


def test_how_far_absrel_moved(
    rooms: Path, exported: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported |= {"fp16": 1.002, "int8": 1.5}
    out = tmp_path / "accuracy.json"
    arguments = ["unet_mobilenet_v3", "--data", str(rooms), "--out", str(out)]
    assert command(parser(), run, [*arguments, "--split", "val"]) == 1
    assert not out.exists()  # nothing is published of the split that choices are made on
    out.write_text(json.dumps({"models": {"unet": "as it was"}}))
    assert command(parser(), run, arguments) == 1
    stored = json.loads(out.read_text())
    assert stored["models"]["unet"] == "as it was"
    report = stored["models"]["unet_mobilenet_v3"]
    rows = report["rows"]
    assert report["count"] == 3 and rows["torch"].keys() == {"abs_rel", "rmse", "d1"}
    assert rows["fp32"]["moved"] == 0 and rows["fp32"]["holds"]
    for precision in LIMITS:
        moved = rows[precision]["abs_rel"] / rows["torch"]["abs_rel"] - 1
        assert rows[precision]["moved"] == pytest.approx(moved, rel=1e-2, abs=1e-5)
        assert rows[precision]["holds"] == (abs(moved) < LIMITS[precision])
    assert not rows["int8"]["holds"] and rows["int8"]["calibration"] == {"frames": 4}
    assert "OVER" in capsys.readouterr().out.splitlines()[-1]


def test_bad_input_is_one_line(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["unet_mobilenet", "--data", str(rooms)], "did you mean"),
        (["unet", "--data", str(rooms)], "no trained weights"),
        (["--data", str(tmp_path)], "dataset.json is missing"),
        (["--data", str(rooms), "--out", str(tmp_path / "no" / "x.json")], "does not exist"),
    ):
        assert command(parser(), run, arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("export_accuracy.py: error: ") and message in error and error.count("\n") == 1


def test_the_recorded_figures_hold() -> None:
    models = json.loads(RESULT.read_text(encoding="utf-8"))["models"]
    assert models
    for name, report in models.items():
        assert report["count"] == 654 and report["protocol"] == "eigen"
        rows = report["rows"]
        for precision, limit in LIMITS.items():
            row = rows[precision]
            assert row["holds"] and abs(row["abs_rel"] / rows["torch"]["abs_rel"] - 1) < limit
        if report["weights"] == zoo_weights.card(name)["file"]:
            card = zoo_weights.card(name)["metrics"]["per_image"]
            assert np.isclose(card["abs_rel"], rows["torch"]["abs_rel"], rtol=1e-3)
