"""A full disk, a place that cannot be written, a loss that is not finite: one line, and nothing is lost."""

import errno
import json
import math
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from depthzoo import weights as zoo_weights
from train.__main__ import parser, run
from train.arguments import command
from train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, same, save_checkpoint
from train.config import load_recipe
from train.engine import Run, RunOptions
from train.feed import Sources
from train.progress import TrainingError

CHECKPOINT = "checkpoint.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


def train(*arguments: object) -> int:
    """``python -m train`` in this process; its exit code."""
    return command(parser(), run, [str(argument) for argument in (*arguments, "--no-report")])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is the one line on stderr that is no sample left out."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("python -m train: error: "), lines
    return lines[0]


# A disk that is full, a place where nothing can be written.


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond so many bytes, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(
    rooms_set: Path,
    sixty_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    small_disk: Callable[[int], None],
) -> None:
    out = tmp_path / "run"
    given = ["--recipe", sixty_steps, "--data", rooms_set, "--device", "cpu", "--out", out, "--max-steps"]
    assert train(*given, 2) == 0
    kept = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    capsys.readouterr()
    small_disk(1_000_000)
    assert train(*given, 4, "--resume") == 2
    error = one_line(capsys)
    assert f"{out / CHECKPOINT} cannot be written: " in error and "too large" in error
    small_disk(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == kept
    assert not list(out.glob("*.part*"))
    assert train(*given, 4, "--resume") == 0
    assert load_checkpoint(out / CHECKPOINT).state["resumed_from"] == [2]


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_a_checkpoint_without_space_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CHECKPOINT
    good = Checkpoint({"w": torch.ones(3)}, None, {"state": {}, "param_groups": []}, {"step": 1}, "")
    save_checkpoint(path, good)
    (tmp_path / f"{CHECKPOINT}.part").mkdir()
    (tmp_path / f"{CHECKPOINT}.part" / ".tmp123").write_bytes(b"of a process that was killed")

    def half(tensors: object, aside: Path, header: object) -> None:
        aside.write_bytes(b"half")
        raise error

    monkeypatch.setattr("train.checkpoint.save_file", half)
    good.state["step"] = 2
    with pytest.raises(CheckpointError, match="cannot be written: .*No space left on device") as caught:
        save_checkpoint(path, good)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert load_checkpoint(path).state["step"] == 1 and os.listdir(tmp_path) == [CHECKPOINT]


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    states = [{"a": torch.ones(3), "b": torch.tensor([1.0, bad])} for bad in (2.0, math.nan)]
    good, bad = (Checkpoint(s, None, {"state": {}, "param_groups": []}, {"step": 1}, "") for s in states)
    save_checkpoint(path, good)
    with pytest.raises(CheckpointError, match="is not written: b is not finite"):
        save_checkpoint(path, bad)
    assert same(load_checkpoint(path).model, good.model)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("file/run", "Not a directory"),
        ("file", "File exists"),
        ("/proc/run", "No such file or directory"),
    ],
)
def test_a_run_that_cannot_be_written_is_refused_before_its_first_step(
    rooms_set: Path,
    sixty_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    says: str,
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / where  # an absolute one replaces it
    assert train("--recipe", sixty_steps, "--data", rooms_set, "--out", out) == 2
    error = one_line(capsys)
    assert says in error and str(out) in error
    assert (tmp_path / "file").read_text() == "mine"


# A loss that is not finite, and a run that learns nothing more.


def test_batches_that_are_skipped_are_counted_and_the_run_goes_on(
    rooms_set: Path,
    sixty_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_recipe(sixty_steps, nonfinite="skip", validate_every=4)
    training = Run(config, Sources(rooms_set), tmp_path / "run", RunOptions(max_steps=8, report=False))
    feed = training.feed.batch

    def batch(step: int, *arguments: Any) -> Any:
        image, depth, mask, keys = feed(step, *arguments)
        if step in (1, 2, 6):
            depth = depth / 0
        return image, depth, mask, keys

    monkeypatch.setattr(training.feed, "batch", batch)
    metrics = training.train()
    assert metrics["step"] == 8 and metrics["skipped"] == 3
    output = capsys.readouterr()
    lines = [line for line in (output.out + output.err).splitlines() if line.startswith("step ")]
    assert "2 batches skipped" in lines[0] and "3 batches skipped" in lines[1]
    assert all(math.isfinite(row[key]) for row in metrics["history"] for key in ("loss", "abs_rel"))
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert state.state["skipped"] == 3
    # Of the 8 steps the optimiser has taken 5.
    assert {float(entry["step"]) for entry in state.optimizer["state"].values()} == {5}


def test_a_run_that_is_to_stop_names_the_samples_and_keeps_its_checkpoint(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Run(load_recipe(sixty_steps), Sources(rooms_set), tmp_path / "run", RunOptions(report=False))
    feed = training.feed.batch
    keys = feed(4, (32, 32))[3]
    monkeypatch.setattr(
        training.feed,
        "batch",
        lambda step, *arguments: tuple(
            x / 0 if i == 1 and step == 4 else x for i, x in enumerate(feed(step, *arguments))
        ),
    )
    with pytest.raises(TrainingError, match=rf"at step 4; samples: {', '.join(keys)}$"):
        training.train()
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).state["step"] == 3


def test_a_validation_that_fails_loses_no_step(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the validation itself: the resumed run begins with it, and ends as one that never failed."""
    config = load_recipe(sixty_steps, validate_every=4, checkpoint_every=100)
    arguments = [config, Sources(rooms_set)]
    straight = Run(*arguments, tmp_path / "straight", RunOptions(max_steps=6, report=False)).train()

    def broken(*arguments: object) -> None:
        raise ValueError("a frame cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("train.engine.validate", broken)
        with pytest.raises(ValueError, match="a frame cannot be read"):
            Run(*arguments, tmp_path / "run", RunOptions(max_steps=6, report=False)).train()
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).state["step"] == 4
    resumed = Run(*arguments, tmp_path / "run", RunOptions(max_steps=6, resume=True, report=False)).train()
    rows = [
        [{key: row[key] for key in row if key != "images_per_s"} for row in metrics["history"]]
        for metrics in (straight, resumed)
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [4, 6]
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("straight", "run"))
    assert same(a.model, b.model) and same(a.average or {}, b.average or {"none": torch.zeros(1)})


def test_averaged_weights_are_calibrated_only_where_they_are_written(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Run(
        load_recipe(sixty_steps, validate_every=4, checkpoint_every=1),
        Sources(rooms_set),
        tmp_path / "run",
        RunOptions(max_steps=6, report=False),
    )
    calibrate, calls = training.learner.calibrate, []

    def noted(*arguments: Any, **options: Any) -> None:
        calls.append(training.progress.step)
        calibrate(*arguments, **options)

    monkeypatch.setattr(training.learner, "calibrate", noted)
    training.train()
    assert calls == [4, 6]
    card = zoo_weights.read_metadata(tmp_path / "run" / "last.safetensors")
    assert card["trained_on"]["steps"] == 6


def test_a_run_without_progress_stops_early(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With frozen BatchNorm and next to no learning rate no validation is better than the first."""
    patient = tmp_path / "patient.toml"
    text = sixty_steps.read_text().replace("every = 20", "every = 4")
    still = "lr = 1e-30\nweight_decay = 0.0\nfreeze_batchnorm = true\n"
    patient.write_text(f"patience = 2\n{still}{text.replace('ema = 0.9', '')}")
    out = tmp_path / "run"
    assert train("--recipe", patient, "--data", rooms_set, "--out", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["step"] for row in metrics["history"]] == [4, 8, 12] and metrics["step"] == 12
    assert len({row["abs_rel"] for row in metrics["history"]}) == 1
    output = capsys.readouterr()
    assert "no better for 2 validations: stopped early" in output.out + output.err
    assert load_checkpoint(out / CHECKPOINT).state["step"] == 12
