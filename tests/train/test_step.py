"""One optimizer step against known arithmetic: groups, clipping, accumulation, averages, skipped batches, precision."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.checkpoint import same
from train.config import TrainConfig, load_recipe
from train.data import Sources
from train.log import Log
from train.loop import Run, RunOptions
from train.optim import learning_rate, usable_precision

pytestmark = pytest.mark.usefixtures("one_thread")
Batch = tuple[Tensor, Tensor, Tensor, list[str]]


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
