"""What stands beside the figures, and which run takes the place of which."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import depthzoo
from benchmarks.measure import record
from benchmarks.measure.record import facts, is_stored, read_runs, store_run

KEYS = ("size", "batch")


def run(size: int, figure: int, processor: str = "A", threads: int = 2) -> dict[str, Any]:
    machine = {"processor": processor, "threads": threads}
    return {"machine": machine, "size": [size, size], "batch": 1, "figure": figure}


def test_a_run_with_the_same_settings_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "latency.cpu.json"
    assert read_runs(path) == [] and not is_stored(path, run(32, 1), KEYS)
    for one in (run(32, 1), run(64, 2), run(32, 3), run(32, 4, "B"), run(32, 5, threads=1)):
        store_run(path, one, KEYS)
    assert [one["figure"] for one in read_runs(path)] == [2, 3, 4, 5]
    assert is_stored(path, run(32, 9), KEYS) and not is_stored(path, run(96, 9), KEYS)
    gpu = run(64, 6)
    gpu["machine"]["gpu"] = "H100"
    assert not is_stored(path, gpu, KEYS)
    assert json.loads(path.read_text()) == {"runs": read_runs(path)}


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"runs": 3}'])
def test_another_file_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.cpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"latency.cpu.json: not a result file: expected JSON with \"runs\""):
        store_run(path, run(32, 1), KEYS)
    assert path.read_text() == text


def test_facts_name_machine_versions_commit_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "commit", lambda: "0123+")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = facts(
        torch.device("cpu"),
        ["numpy", "no-such-package"],
        ["/home/me/latency.py", "--data", "/home/me/nyu", "-x"],
    )
    assert found["command"] == "python benchmarks/latency.py --data nyu -x" and found["commit"] == "0123+"
    assert found["versions"]["depthzoo"] == depthzoo.__version__
    assert {"torch", "python", "numpy"} <= set(found["versions"]) and "no-such-package" not in found[
        "versions"
    ]
    machine = found["machine"]
    assert machine["device"] == "cpu" and machine["threads"] == torch.get_num_threads()
    assert machine["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert machine["processor"] and machine["settings"]["OMP_NUM_THREADS"] == "3" and "gpu" not in machine
    assert json.loads(json.dumps(found)) == found
