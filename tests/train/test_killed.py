"""A run that is killed or told to end continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from train.checkpoint import load_checkpoint, same

CHECKPOINT = "checkpoint.safetensors"


class Process:
    """``python -m train`` in a process of its own, with one thread and always the same bits."""

    def __init__(self, root: Path, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "train", *map(str, arguments), "--deterministic", "--no-report"],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, error = self.popen.communicate(timeout=300)
        return self.popen.returncode, error

    def wait_for_checkpoints(self, path: Path, count: int) -> None:
        """Until so many have been written; each one is a new file under the old name."""
        seen: set[int] = set()
        deadline = time.monotonic() + 300
        while len(seen) < count:
            assert self.popen.poll() is None, self.popen.communicate()[1]
            assert time.monotonic() < deadline, f"{len(seen)} checkpoints after 300 s"
            if path.exists():
                seen.add(path.stat().st_mtime_ns)
            os.sched_yield()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, root: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = ["--recipe", sixty_steps, "--data", rooms_set, "--device", "cpu", "--out"]
    assert Process(root, *given, whole).wait()[0] == 0

    process = Process(root, *given, broken)
    process.wait_for_checkpoints(broken / CHECKPOINT, int(np.random.default_rng(3).integers(2, 15)))
    process.popen.send_signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL, "it has ended before it was killed"
    killed = load_checkpoint(broken / CHECKPOINT)
    at = killed.state["step"]
    assert 0 < at < 60 and at % 3 == 0

    assert Process(root, *given, broken, "--resume").wait()[0] == 0
    metrics = json.loads((broken / "metrics.json").read_text())
    assert metrics["resumed_from"] == [at] and metrics["step"] == metrics["steps"] == 60
    resumed, straight = load_checkpoint(broken / CHECKPOINT), load_checkpoint(whole / CHECKPOINT)
    assert not same(killed.model, resumed.model)
    assert same(resumed.model, straight.model) and same(resumed.average or {}, straight.average or {})
    for index, entry in straight.optimizer["state"].items():
        assert same(resumed.optimizer["state"][index], entry)
    assert same(*(load_file(folder / "last.safetensors") for folder in (whole, broken)))
    assert not list(broken.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(
    number: signal.Signals, rooms_set: Path, sixty_steps: Path, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "run"
    given = ["--recipe", sixty_steps, "--data", rooms_set, "--device", "cpu", "--out", out, "--steps", 5000]
    process = Process(root, *given)
    process.wait_for_checkpoints(out / CHECKPOINT, 1)
    process.popen.send_signal(number)
    code, error = process.wait()
    step = load_checkpoint(out / CHECKPOINT).state["step"]
    assert code == 130 and 3 <= step < 5000
    assert error.strip().endswith(f"{number.name}: saved at step {step}; continue with --resume")
    assert "Traceback" not in error and json.loads((out / "metrics.json").read_text())["step"] == step
    assert not list(out.glob("*.part"))
    assert Process(root, *given, "--resume", "--max-steps", step + 1).wait()[0] == 0
    assert json.loads((out / "metrics.json").read_text())["resumed_from"] == [step]
