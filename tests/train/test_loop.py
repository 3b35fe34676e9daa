"""One optimizer step against known arithmetic, and whole runs: resuming, what they leave behind, what stops them."""

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
from torch import Tensor, nn

from depthzoo import losses
from depthzoo.models import _api, create_model
from depthzoo.weights import read_metadata
from train import evaluate
from train.arguments import command
from train.checkpoint import Checkpoint, load_checkpoint, same, save_checkpoint
from train.config import TrainConfig, load_recipe
from train.data import Sources
from train.log import Log
from train.loop import Run, RunOptions
from train.optim import learning_rate, usable_precision

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


# -- one step -------------------------------------------------------------------------------------------------


def batch(seed: int = 0, count: int = 4) -> Batch:
    """Random images and depths; a different part of each is invalid."""
    g = torch.Generator().manual_seed(seed)
    depth = 1 + 3 * torch.rand(count, 1, 32, 32, generator=g)
    mask = torch.rand(depth.shape, generator=g) > torch.linspace(0.05, 0.3, count).view(-1, 1, 1, 1)
    return torch.rand(count, 3, 32, 32, generator=g), depth, mask, [f"k{i}" for i in range(count)]


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(rooms_set: Path, tmp_path: Path) -> MakeRun:
    """Runs that take plain steps at a constant rate, on the batch that ``given`` returns for a step."""
    runs: list[Run] = []

    def make(given: Callable[[int], Batch] = batch, **settings: Any) -> Run:
        plain: dict[str, Any] = {"optimizer": "sgd", "clip": 0.0, "weight_decay": 0.0, "precision": "fp32"}
        plain |= {"schedule": "constant", "lr": 0.01, "batch_size": 4}
        if settings.get("model", "unet") == "unet":
            plain |= {"model": "unet", "model_options": {"width": 4}}
        run = Run(TrainConfig(**plain | settings), Sources(rooms_set), tmp_path / f"run{len(runs)}")
        run.data.batch = lambda step, *arguments: given(step)  # type: ignore[method-assign, assignment]
        runs.append(run)
        return run

    return make


def states(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def test_schedules() -> None:
    onecycle = TrainConfig(lr=1.0, warmup=0.2)
    rates = [learning_rate(onecycle, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == rates[20] == 1.0 and rates[-1] < 2e-3
    step = TrainConfig(lr=1.0, schedule="step")
    steps = [learning_rate(step, at, 99) for at in (0, 32, 33, 66, 98)]
    assert steps == pytest.approx([1, 1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("model", ["unet", "unet_mobilenet_v3"])
def test_every_parameter_is_in_one_group(make_run: MakeRun, model: str) -> None:
    run = make_run(model=model, encoder_lr=0.1, weight_decay=0.05)
    groups = run.optimizer.param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in run.model.parameters()}
    encoder = {id(p) for p in run.model.encoder.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["factor"] == (0.1 if id(parameter) in encoder else 1.0)
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


def test_the_encoder_moves_at_its_own_rate(make_run: MakeRun) -> None:
    """The first step of SGD is minus the rate times the gradient."""
    moved = {}
    for factor in (1.0, 0.25):
        run = make_run(encoder_lr=factor, freeze_batchnorm=True)
        before = weights(run.model)
        run.step()
        moved[factor] = {key: value - before[key] for key, value in weights(run.model).items()}
    for key, delta in moved[1.0].items():
        factor = 0.25 if key.startswith("encoder.") else 1.0
        torch.testing.assert_close(moved[0.25][key], factor * delta, rtol=1e-3, atol=1e-7)
    assert moved[1.0]["head.conv.weight"].abs().max() > 0


def test_only_weights_of_two_and_more_dimensions_decay(make_run: MakeRun) -> None:
    """Without a valid pixel the gradient is zero, and decay is all that AdamW does: w (1 - rate decay)."""
    image, depth, mask, keys = batch()
    run = make_run(
        lambda step: (image, depth, mask & False, keys), optimizer="adamw", weight_decay=0.1, encoder_lr=0.5
    )
    before = weights(run.model)
    assert run.step() == 0
    for key, value in weights(run.model).items():
        rate = 0.01 * (0.5 if key.startswith("encoder.") else 1.0)
        expected = before[key] * (1 - rate * 0.1) if value.ndim > 1 else before[key]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_frozen_batchnorm_keeps_its_statistics_and_still_learns(make_run: MakeRun) -> None:
    for frozen in (True, False):
        run = make_run(freeze_batchnorm=frozen)
        before, buffers = weights(run.model), {k: v.clone() for k, v in run.model.named_buffers()}
        run.step()
        assert same(buffers, dict(run.model.named_buffers())) == frozen
        assert not same(before, weights(run.model))


@pytest.mark.parametrize("loss", [{"mse": 1.0}, {"silog": 1.0, "gradient": 0.5, "normal": 1.0}])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_accumulated_parts_are_the_whole_batch(
    make_run: MakeRun, loss: dict[str, float], clip: float
) -> None:
    found = []
    for parts in (1, 2):
        run = make_run(accumulate=parts, freeze_batchnorm=True, loss=loss, clip=clip)
        found.append(([run.step() for _ in range(3)], weights(run.model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-5)


def test_clipping_bounds_the_step(make_run: MakeRun) -> None:
    run = make_run(clip=0.01)
    before = weights(run.model)
    run.step()
    moved = torch.cat([(value - before[key]).flatten() for key, value in weights(run.model).items()])
    assert float(moved.norm()) == pytest.approx(0.01 * 0.01, rel=1e-3)


def test_stochastic_depth_is_a_function_of_seed_and_step(make_run: MakeRun) -> None:
    found = []
    for step in (7, 7, 8):
        run = make_run(lambda step: batch(), model="unet_mobilenet_v3", stochastic_depth=0.5)
        run.state.step = step
        torch.rand(len(found) + 1)  # whatever was drawn before
        run.step()
        found.append(states(run.model))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_the_average_follows_quickly_at_first(make_run: MakeRun) -> None:
    """Its decay rises as (1 + n) / (10 + n) to the configured one; the first update takes the weights."""
    run = make_run(ema=0.3, lr=0.1)
    assert run.average is not None
    average, weight = run.average.module.head.conv.weight, run.model.head.conv.weight
    for decay in (0.0, 2 / 11, 3 / 12, 0.3, 0.3):
        before = average.detach().clone()
        run.step()
        assert (weight - before).abs().max() > 1e-3
        torch.testing.assert_close(average.detach(), (decay * before + (1 - decay) * weight).detach())


def test_validation_uses_running_statistics_and_keeps_them(make_run: MakeRun) -> None:
    run = make_run(ema=0.0, size=(64, 64))
    run.step()
    before, modes = states(run.model), []
    hook = run.model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    with Log(run.out, 1, 2) as log:
        run.validate(log, 0.0)
    hook.remove()
    assert modes and not any(modes)
    assert same(before, states(run.model)) and run.model.training


def test_calibrated_statistics_are_the_mean_of_the_last_batches(make_run: MakeRun) -> None:
    run = make_run(ema=0.9)
    for _ in range(3):
        run.step()
    average = run.trained()
    layer, seen = next(m for m in average.modules() if isinstance(m, nn.BatchNorm2d)), []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run.calibrate()
    hook.remove()
    assert len(seen) == 3
    torch.testing.assert_close(
        layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4, atol=1e-5
    )
    assert not layer.training and layer.momentum is not None
    frozen = make_run(ema=0.9, freeze_batchnorm=True)
    frozen.step()
    before = states(frozen.trained())
    frozen.calibrate()
    assert same(states(frozen.trained()), before)


def poisoned(step: int) -> Batch:
    """A batch of step 1 with an image that is not finite."""
    image, depth, mask, keys = batch(step)
    if step == 1:
        image[1] = math.inf
    return image, depth, mask, keys


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_batch_leaves_no_trace(make_run: MakeRun, what: str, precision: str, parts: int) -> None:
    settings: dict[str, Any] = {"optimizer": "adamw", "ema": 0.9, "precision": precision, "accumulate": parts}
    given = poisoned if what == "loss" else batch
    run = make_run(given, nonfinite="skip", **settings)
    run.step()
    before, optimizer = states(run.model), repr(run.optimizer.state_dict())
    assert run.average is not None
    average = states(run.average)
    hook = run.model.head.conv.weight.register_hook(lambda g: g / 0 if what != "loss" else g)
    run.step()
    hook.remove()
    assert same(states(run.model), before) and same(states(run.average), average)
    assert repr(run.optimizer.state_dict()) == optimizer
    assert (run.state.step, run.state.skipped) == (2, 1)
    assert math.isfinite(run.step()) and not same(states(run.model), before)

    stopping = make_run(given, **settings)
    stopping.step()
    stopping.model.head.conv.weight.register_hook(lambda g: g / 0 if what != "loss" else g)
    with pytest.raises(ValueError, match=rf"the {what} is (nan|inf) at step 1; samples: k0, k1, k2, k3"):
        stopping.step()


# -- precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "used"), [("DEFAULT", "fp32"), ("AVX2", "fp32"), ("AVX512", "bf16"), ("SVE256", "bf16")]
)
def test_half_precision_is_used_on_a_cpu_that_has_it(
    capability: str,
    used: str,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run = make_run(precision="bf16")
    assert run.autocast()._enabled == (used == "bf16")
    said = "no fast bf16 on this CPU: computing in fp32\n" in capsys.readouterr().err
    assert said == (used == "fp32") and run.card()["trained_on"]["precision"] == used
    # What was requested is recorded, so that the run can continue anywhere.
    assert load_recipe(run.out / "config.toml") == run.config


@pytest.mark.parametrize(("capability", "used"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_half_precision_on_a_gpu(
    capability: tuple[int, int], used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert usable_precision("bf16", torch.device("cuda", 0)) == used
    assert usable_precision("fp16", torch.device("cuda", 0)) == "fp16"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_takes_nearly_the_step_of_float32(
    make_run: MakeRun, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With frozen BatchNorm: on the statistics of four tiny images the first gradients are a matter of rounding."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    values, steps = [], []
    for kind in ("fp32", precision):
        run = make_run(
            lambda step: batch(), precision=kind, freeze_batchnorm=True, lr=1e-3, model="unet_mobilenet_v3"
        )
        assert run.scaler.is_enabled() == (kind == "fp16")
        before = weights(run.model)
        for _ in range(12):  # fp16 skips steps until its scale is low enough
            values.append(run.step())
            moved = torch.cat([(p - before[key]).flatten() for key, p in weights(run.model).items()])
            if moved.any():
                break
        steps.append(moved)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in run.model.parameters())
    assert values[-1] == pytest.approx(values[0], rel=1e-3) and values[-1] != values[0]
    assert torch.cosine_similarity(*steps, dim=0) > 0.999
    assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.01)


def test_the_scale_of_fp16_gradients_falls_and_is_kept(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    run = make_run(precision="fp16")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(run.model)
    run.step()
    assert run.scaler.get_scale() == 2.0**39 and same(before, weights(run.model))
    run.save()
    resumed = Run(run.config, Sources(run.data.sources.data), run.out, RunOptions(resume=True))
    assert resumed.scaler.get_scale() == 2.0**39


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(make_run: MakeRun, rooms_set: Path, tmp_path: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    plain = make_run(freeze_batchnorm=True)
    compiled = Run(plain.config, Sources(rooms_set), tmp_path / "compiled", RunOptions(compile=True))
    compiled.data.batch = plain.data.batch  # type: ignore[method-assign]
    assert [compiled.step(), compiled.step()] == pytest.approx([plain.step(), plain.step()], rel=1e-3)


# -- whole runs -----------------------------------------------------------------------------------------------


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
    assert says in error_line()


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
