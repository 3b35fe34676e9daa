"""Accuracy of exported files: rows, limits and the split that is not stored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import accuracy
from train import records
from train.arguments import command


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Every export and evaluation is instant. The files' depth is off by a factor per precision."""
    factors = {"fp32": 1.0, "fp16": 1.0, "int8": 1.0}

    def export(model: Any, path: Path, precision: str, data: Path, weights_file: Path) -> Any:
        assert data.name == "rooms" and weights_file.suffix == ".safetensors"
        path.write_text(precision)
        return type("Parity", (), {"max": 1e-6})

    def network(path: Path) -> Any:
        factor = factors[path.read_text()]
        return lambda image: flat(image) * factor

    def flat(image: Tensor) -> Tensor:
        return torch.full_like(image[:, :1], 3.0)

    monkeypatch.setattr(accuracy, "export_onnx", export)
    monkeypatch.setattr(accuracy, "OnnxNetwork", network)
    monkeypatch.setattr(accuracy.depthzoo, "create_model", lambda name, weights: Model())
    return factors


class Model:
    """Predicts 3 m everywhere."""

    card = {"size": [32, 64]}  # noqa: RUF012

    def __call__(self, image: Tensor) -> Tensor:
        return torch.full_like(image[:, :1], 3.0)


def call(rooms: Path, out: Path, *words: str) -> int:
    start = ["unet_mobilenet_v3", "--data", str(rooms), "--out", str(out)]
    return command(accuracy.parser(), accuracy.run, [*start, *words])


def test_rows_and_limits(rooms: Path, tmp_path: Path, exported: dict[str, float]) -> None:
    out = tmp_path / "accuracy.jsonl"
    assert call(rooms, out) == 0
    rows = records.load(out)
    kinds = [(row["backend"], row["precision"]) for row in rows]
    assert kinds == [("eager", "fp32"), *(("onnxruntime", each) for each in ("fp32", "fp16", "int8"))]
    assert [row.get("moved") for row in rows] == [None, 0, 0, 0]
    assert rows[1]["parity_max"] == 1e-6 and rows[0]["abs_rel"] > 0 and rows[0]["split"] == "test"
    exported["int8"] = 1.5
    assert call(rooms, out) == 1
    assert abs(records.load(out)[3]["moved"]) > 0.03


def test_the_validation_split_is_only_printed(
    rooms: Path, tmp_path: Path, exported: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(rooms, tmp_path / "accuracy.jsonl", "--split", "val") == 0
    assert capsys.readouterr().out.count("abs_rel") == 4 and not (tmp_path / "accuracy.jsonl").exists()
