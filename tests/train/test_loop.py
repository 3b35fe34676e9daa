"""Whole runs: resuming, what they leave behind, what stops them."""

import io
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from depthzoo import losses
from depthzoo.models import _api, create_model
from depthzoo.weights import read_metadata
from train import evaluate
from train.arguments import command
from train.checkpoint import Checkpoint, load_checkpoint, same, save_checkpoint
from train.config import load_recipe
from train.data import Sources
from train.loop import Run, RunOptions

pytestmark = pytest.mark.usefixtures("one_thread")
Batch = tuple[Tensor, Tensor, Tensor, list[str]]
CHECKPOINT = "checkpoint.safetensors"
RECIPE = """
model = "unet"
model_options = {width = 4}
size = [64, 64]
warmup_size = [32, 32]
warmup_size_fraction = 0.3
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


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def straight(recipe: Path, rooms_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the recipe, deterministic and with its report."""
    from train.__main__ import parser, run

    out = tmp_path_factory.mktemp("runs") / "straight"
    arguments = ["--recipe", str(recipe), "--data", str(rooms_set), "--out", str(out), "--deterministic"]
    assert command(parser(), run, arguments) == 0
    return out


@pytest.fixture(autouse=True)
def _any_algorithm() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_each_step_draws_its_size(recipe: Path, rooms_set: Path, tmp_path: Path) -> None:
    sizes = ((32, 32), (64, 64), (96, 128))
    run = Run(load_recipe(recipe, sizes=sizes, steps=40), Sources(rooms_set), tmp_path / "one")
    drawn = [run.size(step) for step in range(40)]
    assert set(drawn[:12]) == {(32, 32)}, "warmup_size"
    assert set(drawn[12:]) == set(sizes) and drawn[12:] != sorted(drawn[12:])
    other = Run(load_recipe(recipe, sizes=sizes, steps=40, seed=1), Sources(rooms_set), tmp_path / "two")
    assert drawn != [other.size(step) for step in range(40)]


def test_a_run_leaves_weights_metrics_and_configuration(straight: Path, recipe: Path) -> None:
    metrics = json.loads((straight / "metrics.json").read_text())
    assert metrics["step"] == metrics["steps"] == 8 and metrics["resumed_from"] == []
    assert [row["step"] for row in metrics["history"]] == [4, 8]
    assert metrics["best_val_abs_rel"] == min(row["abs_rel"] for row in metrics["history"])
    assert load_recipe(straight / "config.toml") == load_recipe(recipe)
    model = create_model("unet", weights=straight / "model.safetensors")
    assert model.card is not None and model.card["size"] == [64, 64] and model.arguments["width"] == 4
    about = {"device": "CPU", "steps": 8, "images": 32, "precision": "fp32"}
    assert read_metadata(straight / "last.safetensors")["trained_on"] == about
    assert f"{metrics['best_val_abs_rel']:.3f}" in (straight / "report.html").read_text()
    assert not list(straight.glob("*.part*")) and not list(straight.glob(".*"))


def test_weights_move_and_the_average_lags(straight: Path) -> None:
    checkpoint = load_checkpoint(straight / CHECKPOINT)
    torch.manual_seed(0)
    fresh = create_model("unet", weights=None, width=4).state_dict()
    key = next(name for name in fresh if name.startswith("decoder.") and name.endswith("weight"))
    assert checkpoint.average is not None
    moved = (checkpoint.model[key] - fresh[key]).norm()
    assert 0 < (checkpoint.average["module." + key] - fresh[key]).norm() < moved


def test_tensorboard_has_curves_and_panels(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("val/abs_rel")] == [4, 8]
    tags = events.Tags()
    assert {"train/memory_gib", "train/skipped", "val/d1"} <= set(tags["scalars"])
    terms = [events.Scalars(f"train/loss_{name}")[-1].value for name in ("silog", "gradient")]
    assert terms[0] + 0.1 * terms[1] == pytest.approx(events.Scalars("train/loss")[-1].value, rel=1e-4)
    assert 0 < events.Scalars("train/gradient_norm")[-1].value < 1e3
    assert "config/text_summary" in tags["tensors"]
    panel = Image.open(io.BytesIO(events.Images("val/room-0000000")[0].encoded_image_string))
    assert panel.width > panel.height


@pytest.fixture
def begin(recipe: Path, rooms_set: Path, tmp_path: Path, train: Callable[..., int]) -> Callable[..., int]:
    """``python -m train`` with the recipe, the rooms and ``tmp_path / "run"``; flags that follow win."""
    given = ["--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run"]
    return lambda *flags, report=False: train(*given, *flags, report=report)


@pytest.mark.parametrize("at", [3, 4, 5])
def test_resuming_is_bit_identical(
    at: int, straight: Path, begin: Callable[..., int], tmp_path: Path, train: Callable[..., int]
) -> None:
    """Also when a run is resumed that was stopped just before its validation."""
    out = tmp_path / "run"
    assert begin("--max-steps", at, "--deterministic") == 0
    assert train("--out", out, "--resume", "--deterministic") == 0
    a, b = (load_checkpoint(folder / CHECKPOINT) for folder in (straight, out))
    assert b.state["resumed_from"] == [at] and b.state["step"] == 8
    assert same(a.model, b.model) and same(a.average or {}, b.average or {"none": torch.zeros(1)})
    assert same(*(load_file(folder / "last.safetensors") for folder in (straight, out)))


def test_a_resumed_run_finds_its_data(
    begin: Callable[..., int],
    rooms_set: Path,
    nyu_set: Path,
    tmp_path: Path,
    train: Callable[..., int],
    error_line: Callable[[], str],
) -> None:
    out = tmp_path / "run"
    assert begin("--data", nyu_set, "--mix-data", rooms_set, "--mix", "0.5", "--max-steps", 1) == 0
    assert train("--resume", "--out", out, "--max-steps", 2) == 0
    assert train("--resume", "--out", out, "--mix-data", tmp_path / "nowhere") == 2
    assert f"no data set at {tmp_path / 'nowhere'}" in error_line()


def test_a_finished_run_is_extended(
    straight: Path, tmp_path: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    more = ["--resume", "--out", out, "--steps", 10, "--lr", "1e-4", "--validate-every", 5]
    assert train(*more) == 0
    said = capsys.readouterr()
    assert (
        "resumed with steps 10 (so far 8), lr 0.0001 (so far 0.001), validate_every 5 (so far 4)" in said.err
    )
    assert "step 10 of 10" in said.out
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["step"], metrics["steps"], metrics["resumed_from"]) == (10, 10, [8])
    assert [row["step"] for row in metrics["history"]] == [4, 8, 10] and metrics["history"][-1]["lr"] < 1e-4
    assert load_recipe(out / "config.toml").steps == 10
    assert train("--resume", "--out", out, "--steps", 9) == 2
    assert f"9 steps in all: {out} has already taken 10" in capsys.readouterr().err


def test_a_run_of_an_older_version_resumes_where_new_keys_have_their_defaults(
    straight: Path, tmp_path: Path, train: Callable[..., int]
) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    checkpoint = load_checkpoint(out / CHECKPOINT)
    assert "imports = []\n" in checkpoint.config
    checkpoint.config = checkpoint.config.replace("imports = []\n", "")
    save_checkpoint(out / CHECKPOINT, checkpoint)
    assert train("--resume", "--out", out) == 0


def test_a_run_says_what_it_does_where_there_is_no_terminal(
    begin: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.log.LINE_EVERY", 0.0)
    assert begin("--device", "cpu", "--max-steps", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unet, 0.") and lines[0].endswith(
        "M parameters, on CPU in fp32; 22 train and 1 validation frames; 8 steps of 4 images, 1.45 passes"
    )
    assert lines[1].startswith("step 1 of 2: loss ") and lines[1].endswith(" left")


OWN = """
from functools import partial

from depthzoo.losses import DepthLoss, register_loss
from depthzoo.models import register_model
from depthzoo.models._api import build_model
from depthzoo.models.unet import _unet

@register_model
def my_net(*, weights=None, pretrained=None, encoder_weights=None, head=None, width=None):
    options = {"head": head, "width": width}
    return build_model(partial(_unet, bilinear=True), "my_net", weights, pretrained, encoder_weights, options)

@register_loss("mine")
class Mine(DepthLoss):
    def per_image(self, prediction, target, mask):
        return (mask * (prediction - target).abs()).flatten(1).mean(1), mask.flatten(1).any(1)
"""


def test_models_and_losses_of_ones_own(
    begin: Callable[..., int],
    rooms_set: Path,
    tmp_path: Path,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("depthzoo.models._api.BUILDERS", dict(_api.BUILDERS))
    monkeypatch.setattr("depthzoo.losses.LOSSES", dict(losses.LOSSES))
    (tmp_path / "own.toml").write_text(RECIPE.replace('"unet"', '"my_net"').replace("silog", "mine"))
    flags = ["--recipe", tmp_path / "own.toml", "--warmup-size-fraction", 0, "--import", "my_parts.py"]
    assert begin(*flags, "--max-steps", 1) == 0
    assert train("--resume", "--out", tmp_path / "run", "--max-steps", 2) == 0, "the run knows its imports"
    words = ["--data", str(rooms_set), "--split", "val", "--protocol", "full", "--import", "my_parts"]
    assert command(evaluate.parser(), evaluate.run, [str(tmp_path / "run"), *words]) == 0
    del sys.modules["my_parts"]


def test_help_and_usage_errors_do_not_import_pytorch(root: Path) -> None:
    code = "import sys; from train.__main__ import *; parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_card_names_the_code_that_the_run_began_with(
    rooms_set: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    monkeypatch.setattr("train.cards.ROOT", tmp_path)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    run = Run(load_recipe(recipe), Sources(rooms_set), tmp_path / "run")
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "y"], check=True)
    assert run.card()["commit"] == head.strip()


def test_batches_that_are_skipped_are_counted_and_the_run_goes_on(
    rooms_set: Path,
    sixty_steps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = load_recipe(sixty_steps, nonfinite="skip", validate_every=4)
    run = Run(config, Sources(rooms_set), tmp_path / "run", RunOptions(max_steps=8))
    original = run.data.batch

    def broken(step: int, *arguments: Any) -> Batch:
        image, depth, mask, keys = original(step, *arguments)
        return image, depth / 0 if step in (1, 2, 6) else depth, mask, keys

    monkeypatch.setattr(run.data, "batch", broken)
    metrics = run.train()
    assert metrics["step"] == 8 and metrics["skipped"] == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert "2 batches skipped" in lines[0] and "3 batches skipped" in lines[1]
    assert all(math.isfinite(row[key]) for row in metrics["history"] for key in ("loss", "abs_rel"))
    optimizer = load_checkpoint(tmp_path / "run" / CHECKPOINT).optimizer
    assert {float(entry["step"]) for entry in optimizer["state"].values()} == {5}


def test_a_validation_that_fails_loses_no_step(
    rooms_set: Path, sixty_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the validation itself: the resumed run begins with it, and ends as one that never failed."""
    config = load_recipe(sixty_steps, validate_every=4, checkpoint_every=100)

    def run(name: str, resume: bool = False) -> dict[str, Any]:
        return Run(
            config, Sources(rooms_set), tmp_path / name, RunOptions(max_steps=6, resume=resume)
        ).train()

    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("a frame cannot be read")

    whole = run("whole")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a frame cannot be read"):
        patch.setattr("train.loop.evaluate", broken)
        run("run")
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).state["step"] == 4
    resumed = run("run", resume=True)
    rows = [[row | {"images_per_s": 0} for row in metrics["history"]] for metrics in (whole, resumed)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [4, 6]
    assert same(*(load_checkpoint(tmp_path / name / CHECKPOINT).model for name in ("whole", "run")))


def test_a_report_that_cannot_be_made_fails_no_run(
    begin: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("train.report.report_run", broken)
    assert begin("--max-steps", 1, report=True) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "no report: no ink"


def test_without_tensorboard_it_says_so(
    begin: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert begin("--max-steps", 1) == 0
    assert capsys.readouterr().err.count("no TensorBoard logs") == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


# -- what stops a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--recipe", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--resume"], "checkpoint.safetensors is not a whole checkpoint: No such file"),
        (["--mix", "0.5"], "--mix-data"),
        (["--encoder-weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--init", "unet_mobilenet"], "did you mean 'unet_mobilenet_v3'"),
        (["--init", "unet"], "unet: no trained weights"),
        (
            ["--import", "nowhere.parts"],
            "--import nowhere.parts: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (["--device", "cuda:99"], "cuda"),
        (["--batch-size", "0"], "batch_size = 0"),
        (["--max-steps", "-5"], "--max-steps -5: expected 0 or more"),
        (["--out", "/proc/run"], "/proc/run: No such file or directory"),
    ],
)
def test_bad_arguments_are_one_line(
    begin: Callable[..., int], change: list[str], says: str, error_line: Callable[[], str]
) -> None:
    assert begin("--max-steps", 1, *change) == 2
    assert says in (line := error_line())
    assert "weights=None" not in line  # advice for Python


def test_a_new_run_needs_a_recipe_and_data(
    rooms_set: Path, recipe: Path, tmp_path: Path, train: Callable[..., int], error_line: Callable[[], str]
) -> None:
    assert train("--data", rooms_set, "--out", tmp_path / "run") == 2
    assert "--recipe FILE is needed" in error_line()
    assert train("--recipe", recipe, "--out", tmp_path / "run") == 2
    assert "--data DIR is needed" in error_line()


def test_a_run_is_not_overwritten_nor_resumed_with_something_else(
    begin: Callable[..., int], folder: Path, tmp_path: Path, error_line: Callable[[], str]
) -> None:
    checkpoint = tmp_path / "run" / CHECKPOINT
    assert begin("--max-steps", 1) == 0
    kept = checkpoint.read_bytes()
    for flags, says in (
        ([], "already holds a run; continue it with --resume"),
        (["--resume", "--clip", "0.5"], "made with another clip; resume with"),
        (["--resume", "--data", folder], "made with other data: dataset.json has changed"),
    ):
        assert begin("--max-steps", 1, *flags) == 2
        assert says in error_line()
    assert checkpoint.read_bytes() == kept
    checkpoint.write_bytes(kept[:-100])
    assert begin("--resume") == 2
    assert "not a whole checkpoint" in error_line()


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond so many bytes, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(
    begin: Callable[..., int],
    tmp_path: Path,
    small_disk: Callable[[int], None],
    error_line: Callable[[], str],
) -> None:
    out = tmp_path / "run"
    assert begin("--max-steps", 2) == 0
    kept = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    small_disk(1_000_000)
    assert begin("--max-steps", 4, "--resume") == 2
    error = error_line()
    assert f"{out / CHECKPOINT} cannot be written: " in error and "too large" in error
    small_disk(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == kept
    assert not list(out.glob("*.part*"))
    assert begin("--max-steps", 4, "--resume") == 0


def test_a_checkpoint_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CHECKPOINT

    def checkpoint(value: float, step: int) -> Checkpoint:
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        return Checkpoint({"w": torch.tensor([1.0, value])}, None, optimizer, {"step": step}, "")

    save_checkpoint(path, checkpoint(2.0, 1))
    with pytest.raises(ValueError, match="is not written: w is not finite"):
        save_checkpoint(path, checkpoint(math.nan, 2))
    monkeypatch.setattr(Path, "write_bytes", lambda *arguments: os.close(-1))
    with pytest.raises(ValueError, match="cannot be written: Bad file descriptor"):
        save_checkpoint(path, checkpoint(3.0, 2))
    read = load_checkpoint(path)
    assert (
        read.state == {"step": 1}
        and read.model["w"].tolist() == [1, 2]
        and os.listdir(tmp_path) == [CHECKPOINT]
    )
    assert read.optimizer["state"][0]["step"] == 3 and read.optimizer["param_groups"][0]["lr"] == 0.1


@pytest.mark.slow
def test_a_real_run_learns(real_set: Path, tmp_path: Path, train: Callable[..., int]) -> None:
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
