"""Results files: what a row says about its origin, and which row replaces which."""

from pathlib import Path
from typing import Any

import pytest
import torch

import depthzoo
from train import records


def row(size: int, ms: float, machine: str = "A", **others: Any) -> records.Row:
    return {"machine": machine, "device": "cpu", "height": size, "width": size, "ms": ms, **others}


def test_a_row_replaces_the_one_with_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "latency.jsonl"
    assert records.load(path) == [] and records.find(path, row(32, 1)) is None
    records.store(path, [row(32, 1), row(64, 2)])
    records.store(path, [row(32, 3), row(32, 4, "B"), row(32, 5, threads=1), row(32, 6, seed=0)])
    assert [each["ms"] for each in records.load(path)] == [3, 2, 4, 5, 6]
    assert records.find(path, row(64, 9)) == row(64, 2)
    assert len(path.read_text().splitlines()) == 5 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"latency.jsonl: not a results file"):
        records.store(path, [row(32, 1)])
    assert path.read_text() == "hello\n"


def test_provenance(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    script = root / "benchmarks" / "latency.py"
    monkeypatch.setattr("sys.argv", [str(script), "--data", "/home/me/nyu", "--batches", "1"])
    found = records.provenance(torch.device("cpu"))
    assert found["command"] == "python -m benchmarks.latency --data nyu --batches 1"
    assert found["depthzoo"] == depthzoo.__version__ and found["torch"] and found["commit"]
    assert found["threads"] == torch.get_num_threads() and found["machine"] and found["device"] == "cpu"
    monkeypatch.setattr("sys.argv", [str(root / "train" / "reproduction" / "__main__.py")])
    assert records.provenance(torch.device("cpu"))["command"] == "python -m train.reproduction"
