"""Runs: order, schedule, resuming, and what a run leaves behind."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from depthzoo.models import create_model
from train.__main__ import parser, run
from train.arguments import command
from train.checkpoint import load_checkpoint, same
from train.config import TrainConfig, load_recipe
from train.engine import Run
from train.feed import Sources
from train.loading import DecodedSet, SampleStream
from train.optimize import learning_rate
from train.progress import TrainingError
from train.shards import ShardDataset

RECIPE = """
model = "unet_mobilenet_v3"
size = [64, 64]
first_size = [32, 32]
first_share = 0.3
steps = 8
batch_size = 4
ema = 0.9
precision = "fp32"
validate_every = 4
checkpoint_every = 4
[loss]
silog = 1.0
gradient = 0.1
[augment]
flip = true
zoom = [1.0, 1.4]
"""


@pytest.fixture(autouse=True)
def deterministic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


def train(*arguments: object, report: bool = False) -> int:
    flags = [] if report else ["--no-report"]
    return command(parser(), run, [*map(str, arguments), *flags])


def test_each_step_draws_its_size_and_keeps_the_aspect(recipe: Path, rooms_set: Path, tmp_path: Path) -> None:
    sizes = ((32, 32), (64, 64), (96, 128))
    config = load_recipe(recipe, sizes=sizes, steps=40)
    one = Run(config, Sources(rooms_set), tmp_path / "one")
    drawn = [one.size(step) for step in range(40)]
    assert set(drawn[:12]) == {(32, 32)}, "the small pictures of first_share"
    assert set(drawn[12:]) == set(sizes) and drawn[12:] != sorted(drawn[12:])
    assert drawn == [Run(config, Sources(rooms_set), tmp_path / "two").size(step) for step in range(40)]
    other = Run(load_recipe(recipe, sizes=sizes, steps=40, seed=1), Sources(rooms_set), tmp_path / "three")
    assert drawn != [other.size(step) for step in range(40)]
    for size, fed in zip(sizes, ((32, 32), (64, 64), (96, 128)), strict=True):
        image, depth, mask, _ = one.feed.batch(0, size)
        assert image.shape[-2:] == depth.shape[-2:] == mask.shape[-2:] == fed
    assert one.feed.batch(0, (64, 256))[0].shape[-2:] == (96, 160), "as many pixels in the frames' own aspect"


def test_every_epoch_has_every_sample_once(rooms_set: Path) -> None:
    stream = SampleStream(DecodedSet(ShardDataset(rooms_set, "train")), seed=3)
    count = len(stream.data.keys)
    epochs = [[stream.locate(epoch * count + i)[1] for i in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_sample_is_the_same_in_any_batch(rooms_set: Path) -> None:
    data = DecodedSet(ShardDataset(rooms_set, "train"))
    whole, late = SampleStream(data, 3).batch(0, 50), SampleStream(data, 3).batch(37, 5)
    assert late.keys == whole.keys[37:42]
    np.testing.assert_array_equal(late.draws, whole.draws[37:42])
    assert torch.equal(late.image, whole.image[37:42])


def test_schedules() -> None:
    onecycle = TrainConfig(lr=1.0, warmup=0.2)
    rates = [learning_rate(onecycle, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == rates[20] == 1.0 and rates[-1] < 2e-3
    step = TrainConfig(lr=1.0, schedule="step")
    assert [learning_rate(step, at, 99) for at in (0, 32, 33, 66, 98)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.01]
    )


def test_a_run_leaves_weights_metrics_and_configuration(
    rooms_set: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train("--recipe", recipe, "--data", rooms_set, "--out", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["step"] == metrics["steps"] == 8 and metrics["resumed_from"] == []
    assert [row["step"] for row in metrics["history"]] == [4, 8]
    assert metrics["best_val_abs_rel"] == min(row["abs_rel"] for row in metrics["history"])
    model = create_model("unet_mobilenet_v3", weights=out / "model.safetensors")
    assert (
        model.card is not None
        and model.card["size"] == [64, 64]
        and model.card["trained_on"]["device"] == "CPU"
    )
    assert (out / "last.safetensors").is_file()
    again = tmp_path / "again"
    assert train("--recipe", out / "config.toml", "--data", rooms_set, "--out", again) == 0
    assert same(load_file(out / "last.safetensors"), load_file(again / "last.safetensors"))


def test_a_card_names_the_code_that_the_run_began_with(
    rooms_set: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the checkout holds when the weights are written."""
    repository = tmp_path / "checkout"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    commits = []

    def commit() -> None:
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
        done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        commits.append(done.stdout.strip())

    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    commit()
    monkeypatch.setattr("train.cards.ROOT", repository)
    training = Run(load_recipe(recipe), Sources(rooms_set), tmp_path / "run")
    commit()
    assert training.card()["commit"] == commits[0] != commits[1]


def test_a_run_can_be_looked_at(rooms_set: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train("--recipe", recipe, "--data", rooms_set, "--out", out, "--steps", 12, report=True) == 0
    page, picture = (out / "report.html").read_text(), Image.open(out / "report.png")
    best = json.loads((out / "metrics.json").read_text())["best_val_abs_rel"]
    assert f"{best:.3f}" in page and page.count("data:image/") >= 4 and picture.width > 1000
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [10]
    assert [point.step for point in events.Scalars("val/abs_rel")] == [4, 8, 12]
    assert {"train/lr", "train/images_per_s", "train/memory_gib", "val/d1"} <= set(events.Tags()["scalars"])
    panel = Image.open(io.BytesIO(events.Images("val/room-0000000")[0].encoded_image_string))
    assert panel.width > panel.height


def test_a_report_that_cannot_be_made_fails_no_run(
    rooms_set: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("train.engine.final_report", broken)
    arguments = ["--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run", "--max-steps", 1]
    assert train(*arguments, report=True) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "no report: no ink"


def test_the_number_of_train_frames_can_be_limited(rooms_set: Path, recipe: Path, tmp_path: Path) -> None:
    config = load_recipe(recipe, frames=5, steps=0, epochs=3, batch_size=2)
    training = Run(config, Sources(rooms_set), tmp_path / "run")
    assert training.total == 9  # three epochs of five frames, two at a time
    keys = {key for step in range(10) for key in training.feed.batch(step, (32, 32))[3]}
    assert len(keys) == 5


def test_resuming_is_bit_identical(rooms_set: Path, recipe: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert train("--recipe", recipe, "--data", rooms_set, "--out", straight) == 0
    assert train("--recipe", recipe, "--data", rooms_set, "--out", broken, "--max-steps", 5) == 0
    assert train("--out", broken, "--resume") == 0
    a, b = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (straight, broken))
    assert b.state["resumed_from"] == [5] and b.state["step"] == 8
    assert same(a.model, b.model) and same(a.average or {}, b.average or {"missing": torch.zeros(1)})


def test_weights_move_and_the_average_lags(rooms_set: Path, recipe: Path, tmp_path: Path) -> None:
    assert train("--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run") == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    torch.manual_seed(0)
    fresh = create_model("unet_mobilenet_v3", weights=None).state_dict()
    key = "decoder.narrow.0.weight"
    moved = (checkpoint.model[key] - fresh[key]).norm()
    lag = (checkpoint.average["module." + key] - fresh[key]).norm()
    assert 0 < lag < moved


def test_a_mixed_batch_has_both_sets(
    rooms_set: Path, real_set: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--mix", 0.5, "--max-steps", 1]
    arguments = ["--recipe", recipe, "--data", real_set, "--mix-data", rooms_set, "--out", out]
    assert train(*arguments, *flags) == 0
    # A resume knows both sets, and its flags win over what the run knows.
    assert train("--resume", "--out", out, "--max-steps", 2) == 0
    assert train("--resume", "--out", out, "--mix-data", tmp_path / "nowhere") == 2
    assert f"no data set at {tmp_path / 'nowhere'}" in capsys.readouterr().err
    half = Run(load_recipe(recipe, mix=0.5), Sources(real_set, rooms_set), tmp_path / "other")
    *_, keys = half.feed.batch(0, (64, 64))
    assert [key.split("-")[0] for key in keys] == ["nyu", "nyu", "room", "room"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--recipe", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--resume"], "no checkpoint to resume from"),
        (["--mix", "0.5"], "--mix-data"),
        (["--encoder-weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--device", "cuda:99"], "cuda"),
        (["--size", "64x64", "--batch-size", "0"], "batch_size = 0"),
        (["--lr", "nan"], "lr = nan"),
        (["--max-steps", "-5"], "--max-steps -5: expected 0 or more"),
    ],
)
def test_bad_arguments_are_one_line(
    rooms_set: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    says: str,
) -> None:
    base = ["--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run", "--max-steps", 1]
    assert train(*base, *change) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.strip().count("\n") == 0


def test_a_new_run_needs_a_recipe_and_data(
    rooms_set: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data", rooms_set, "--out", tmp_path / "run") == 2
    assert "--recipe FILE is needed" in capsys.readouterr().err
    assert train("--recipe", recipe, "--out", tmp_path / "run") == 2
    assert "--data DIR is needed" in capsys.readouterr().err
    assert train("--data", rooms_set, "--out", tmp_path / "run", "--resume") == 2
    assert "config.toml cannot be read: No such file" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_is_one_line(
    rooms_set: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert train("--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "file" / "run") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and "Errno" not in error and error.strip().count("\n") == 0


def test_a_finished_run_is_not_overwritten(
    rooms_set: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run", "--max-steps", 1]
    assert train(*arguments) == 0
    assert train(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert train(*arguments, "--resume", "--lr", "0.5") == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_checkpoint_cut_short_is_refused(
    rooms_set: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run"]
    assert train(*arguments, "--max-steps", 1) == 0
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert train(*arguments, "--resume") == 2
    assert "not a whole checkpoint" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_the_samples(rooms_set: Path, recipe: Path, tmp_path: Path) -> None:
    training = Run(load_recipe(recipe), Sources(rooms_set), tmp_path / "run")
    with torch.no_grad():
        training.learner.model.head.conv.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"nan at step 0; samples: room-\d+, room-"):
        training.train_step()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on(rooms_set: Path, recipe: Path, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--recipe", str(recipe), "--data", str(rooms_set), "--out", str(out), "--steps", "2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *arguments, "--checkpoint-every", "5"],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    step = load_checkpoint(out / "checkpoint.safetensors").state["step"]
    assert 4 <= step < 2000  # the first checkpoint is that of the first validation
    more = [*arguments, "--checkpoint-every", "5", "--resume", "--max-steps", str(step + 1)]
    assert train(*more) == 0
    assert json.loads((out / "metrics.json").read_text())["resumed_from"] == [step]


@pytest.mark.slow
def test_a_real_run_learns(real_set: Path, tmp_path: Path) -> None:
    """60 steps on real frames: the loss falls, and so does the error on frames that it does not see."""
    path = tmp_path / "real.toml"
    path.write_text(
        'model = "unet_mobilenet_v3"\nsize = [96, 128]\nsteps = 60\nbatch_size = 8\nlr = 2e-3\nwarmup = 0.3\n'
        "ema = 0.9\nvalidate_every = 20\ncheckpoint_every = 60\n[loss]\nsilog = 1.0\n[augment]\nflip = true\n"
    )
    assert train("--recipe", path, "--data", real_set, "--out", tmp_path / "run") == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["abs_rel"] < history[0]["abs_rel"]
