"""What one optimiser step does to which weights, and what precision, memory saving and compilation do not change."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthzoo.models import create_model
from depthzoo.models.layers import Upsample2x
from train.cards import write_weights
from train.config import TrainConfig
from train.distributed import World
from train.learner import Learner, build_model
from train.optimize import add_stochastic_depth, make_optimizer, recompute_activations
from train.progress import TrainingError

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor, Tensor]
MODELS = ("unet", "unet_mobilenet_v3", "unet_resnet50", "dispnet_vgg16")


pytestmark = pytest.mark.usefixtures("one_thread")


def learner(**settings: Any) -> Learner:
    """A small network that takes plain steps: what a step does can be computed by hand."""
    plain: dict[str, Any] = {"optimizer": "sgd", "clip": 0.0, "weight_decay": 0.0, "precision": "fp32"}
    return Learner(TrainConfig(**plain | settings), CPU, World())


def batch(count: int = 4, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Batch:
    """Random pictures and depths; a different part of each is invalid."""
    g = torch.Generator().manual_seed(seed)
    depth = 1 + 3 * torch.rand(count, 1, *size, generator=g)
    mask = torch.rand(depth.shape, generator=g) > torch.linspace(0.05, 0.3, count).view(-1, 1, 1, 1)
    return torch.rand(count, 3, *size, generator=g), depth, mask


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.named_parameters()}


def states(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Groups.


@pytest.mark.parametrize("model", MODELS)
def test_the_groups_hold_every_parameter_once(model: str) -> None:
    network = learner(model=model).model
    config = TrainConfig(encoder_lr=0.1, weight_decay=0.05, lr=1e-3)
    groups = make_optimizer(network, config).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in network.parameters()}
    encoder = {id(p) for p in network.encoder.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["factor"] == (0.1 if id(parameter) in encoder else 1.0)
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


def test_the_encoder_moves_at_its_own_rate() -> None:
    """The first step of SGD is minus the rate times the gradient."""
    moved = {}
    for factor in (1.0, 0.25):
        one = learner(encoder_lr=factor, freeze_batchnorm=True)
        before = weights(one.model)
        one.learn(*batch(), rate=0.01, frozen=False)
        moved[factor] = {key: value - before[key] for key, value in one.model.named_parameters()}
        assert all(
            delta.abs().max() > 0 for key, delta in moved[factor].items() if key.endswith("conv.weight")
        )
    for key, delta in moved[1.0].items():
        factor = 0.25 if key.startswith("encoder.") else 1.0
        torch.testing.assert_close(moved[0.25][key], factor * delta, rtol=1e-3, atol=1e-7)


def test_only_weights_of_two_and_more_dimensions_decay() -> None:
    """Without a valid pixel the gradient is zero, and decay is all that AdamW does: w (1 - rate decay)."""
    one = learner(optimizer="adamw", weight_decay=0.1, encoder_lr=0.5)
    before = weights(one.model)
    image, depth, mask = batch()
    assert one.learn(image, depth, torch.zeros_like(mask), rate=0.01, frozen=False) == 0
    for key, value in one.model.named_parameters():
        rate = 0.01 * (0.5 if key.startswith("encoder.") else 1.0)
        expected = before[key] * (1 - rate * 0.1) if value.ndim > 1 else before[key]
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=0)


# What stays as it is.


@pytest.mark.parametrize("model", MODELS)
def test_a_frozen_encoder_stays_bit_identical_and_then_moves(model: str) -> None:
    one = learner(model=model, optimizer="adamw", weight_decay=0.1)
    before, rest = states(one.model.encoder), states(one.model)
    for seed in range(2):
        one.learn(*batch(2, seed), rate=1e-3, frozen=True)
    assert equal(states(one.model.encoder), before)
    assert any(not torch.equal(rest[k], v) for k, v in one.model.state_dict().items() if "encoder." not in k)
    one.learn(*batch(2, 2), rate=1e-3, frozen=False)
    after = one.model.encoder.state_dict()
    still = [key for key, value in before.items() if torch.equal(after[key], value)]
    assert still == [], "weights and BatchNorm statistics of the encoder after it has thawed"


def test_frozen_batchnorm_keeps_its_statistics_and_still_learns() -> None:
    one = learner(freeze_batchnorm=True)
    statistics = {key: value.clone() for key, value in one.model.named_buffers()}
    before = weights(one.model)
    one.learn(*batch(), rate=0.01, frozen=False)
    assert equal(statistics, dict(one.model.named_buffers()))
    assert not torch.equal(before["head.conv.weight"], one.model.head.conv.weight)
    free = learner()
    free.learn(*batch(), rate=0.01, frozen=False)
    assert not equal(statistics, dict(free.model.named_buffers()))


@pytest.mark.parametrize("model", ["unet_mobilenet_v3", "unet_resnet50", "unet_bilinear"])
def test_upsampling_goes_backward_on_dense_gradients(model: str) -> None:
    """And the gradients of the weights are those of the plain network."""
    image, depth, mask = batch(2, size=(32, 64))
    dense: list[bool] = []
    found = []
    for plain in (False, True):
        one = learner(model=model)
        network = build_model(one.config).to(memory_format=torch.channels_last) if plain else one.model
        network.train()
        for module in network.modules():
            if isinstance(module, Upsample2x) and not plain:
                module.register_full_backward_pre_hook(
                    lambda module, gradients: dense.append(
                        gradients[0].is_contiguous(memory_format=torch.channels_last)
                    )
                )
        images = image.contiguous(memory_format=torch.channels_last)
        one.loss(network(images, all_heads=True), depth, mask).backward()
        found.append({key: value.grad for key, value in network.named_parameters()})
    assert len(dense) >= 4 and all(dense)
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, rtol=1e-3, atol=1e-6)


# Accumulation.


@pytest.mark.parametrize("loss", [{"mse": 1.0}, {"silog": 1.0, "gradient": 0.5, "normal": 1.0}])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_two_parts_of_a_batch_are_the_whole_batch(loss: dict[str, float], clip: float) -> None:
    found = []
    for parts in (1, 2):
        one = learner(accumulate=parts, batch_size=4, freeze_batchnorm=True, loss=loss, clip=clip)
        before = weights(one.model)
        values = [one.learn(*batch(seed=seed), rate=0.01, frozen=False) for seed in range(3)]
        assert not equal(before, weights(one.model))
        found.append((values, weights(one.model)))
    (whole, a), (parts_, b) = found
    assert parts_ == pytest.approx(whole, rel=1e-5)
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-5)


# Memory.


def saved_bytes(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes that a forward pass keeps for the backward pass, storages counted once; and its result."""
    kept: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(size for size, _ in kept.values()), result


@pytest.mark.parametrize("model", MODELS)
def test_recomputing_gives_the_same_gradients_from_less_memory(model: str) -> None:
    image, depth, mask = batch(2, size=(48, 64))
    found = []
    for again in (False, True):
        one = learner(model=model)
        if again:
            assert recompute_activations(one.model) > 3
        one.model.train()
        weight_bytes = sum(p.numel() * p.element_size() for p in one.model.parameters())

        def forward(one: Learner = one) -> Tensor:
            loss: Tensor = one.loss(one.model(image, all_heads=True), depth, mask)
            return loss

        kept, loss = saved_bytes(forward)
        loss.backward()
        found.append((max(0, kept - weight_bytes), {k: p.grad for k, p in one.model.named_parameters()}))
    (plain, expected), (small, gradients) = found
    assert small < 0.6 * plain
    for key, gradient in expected.items():
        assert gradient is not None and gradients[key] is not None
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6)


# The average of the weights.


def test_the_average_follows_quickly_at_first() -> None:
    """Its decay rises as (1 + n) / (10 + n) until it is the configured one; the first update takes the weights."""
    one = learner(ema=0.3)
    assert one.average is not None
    average, weight = one.average.module.head.conv.weight, one.model.head.conv.weight
    for decay in (0.0, 2 / 11, 3 / 12, 0.3, 0.3):
        before = average.detach().clone()
        one.learn(*batch(), rate=0.1, frozen=False)
        assert (weight - before).abs().max() > 1e-3
        torch.testing.assert_close(average.detach(), (decay * before + (1 - decay) * weight).detach())


@pytest.mark.parametrize("frozen", [True, False])
def test_calibration_leaves_what_is_frozen(frozen: bool) -> None:
    one = learner(ema=0.9)
    one.learn(*batch(), rate=0.01, frozen=frozen)
    average = one.trained()
    encoder, rest = states(average.encoder), states(average.decoder)
    one.calibrate([batch(seed=seed)[0] for seed in (1, 2)], frozen)
    assert equal(states(average.encoder), encoder) == frozen
    assert not equal(states(average.decoder), rest)
    still = learner(ema=0.9, freeze_batchnorm=True)
    still.learn(*batch(), rate=0.01, frozen=frozen)
    before = states(still.trained())
    still.calibrate([batch(seed=1)[0]], frozen)
    assert equal(states(still.trained()), before)


def test_calibrated_statistics_are_the_mean_of_the_batches() -> None:
    one = learner(ema=0.9)
    one.learn(*batch(), rate=0.01, frozen=False)
    average, images = one.trained(), [batch(seed=seed)[0] for seed in (1, 2, 3)]
    layer, seen = next(m for m in average.modules() if isinstance(m, nn.BatchNorm2d)), []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    one.calibrate(images, frozen=False)
    hook.remove()
    means = torch.stack([image.mean((0, 2, 3)) for image in seen])
    torch.testing.assert_close(layer.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    # As before the next step: evaluation does not move the statistics, training moves them by their own momentum.
    after = states(average)
    average(images[0])
    assert equal(states(average), after) and layer.momentum is not None


# Precision.


def test_a_recipes_options_reach_the_model() -> None:
    model = build_model(TrainConfig(model="unet", head="linear", model_options={"width": 4}))
    assert model.arguments == {"head": "linear", "width": 4}
    with pytest.raises(ValueError, match=r"^model_options of unet: .*'widht'") as error:
        build_model(TrainConfig(model="unet", model_options={"widht": 4}))
    assert "\n" not in str(error.value)


def test_a_whole_model_to_start_from_needs_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises((OSError, ValueError), match="no network"):
        build_model(TrainConfig(encoder_weights="imagenet"))
    path = tmp_path / "model.safetensors"
    start = build_model(TrainConfig(seed=1))
    write_weights(start, path, {"model": start.name, "arguments": start.arguments})
    model = build_model(TrainConfig(encoder_weights="imagenet", init=str(path)))
    torch.testing.assert_close(states(model), states(start), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_takes_nearly_the_step_of_float32(precision: str) -> None:
    """With frozen BatchNorm: on the statistics of four tiny pictures the first gradients are a matter of rounding."""
    values, steps = [], []
    for kind in ("fp32", precision):
        one = learner(precision=kind, freeze_batchnorm=True)
        assert one.scaler.is_enabled() == (kind == "fp16")
        before = weights(one.model)
        for _ in range(12):  # fp16 leaves out steps until its scale is low enough
            values.append(one.learn(*batch(), rate=1e-3, frozen=False))
            moved = [(p - before[key]).detach().flatten() for key, p in one.model.named_parameters()]
            if any(delta.any() for delta in moved):
                break
        steps.append(torch.cat(moved))
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in one.model.parameters())
        with one.autocast():
            assert one.model(batch()[0]).dtype == torch.float32
    assert values[-1] == pytest.approx(values[0], rel=1e-3) and values[-1] != values[0]
    assert torch.cosine_similarity(*steps, dim=0) > 0.999
    assert float(steps[1].norm()) == pytest.approx(float(steps[0].norm()), rel=0.01)


def test_the_scale_of_fp16_gradients_is_kept_and_falls_when_they_overflow() -> None:
    one = learner(precision="fp16", loss={"mse": 1.0})
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(one.model)
    one.learn(*batch(), rate=0.01, frozen=False)
    assert one.scaler.get_scale() == 2.0**39 and equal(before, weights(one.model))
    other = learner(precision="fp16", loss={"mse": 1.0})
    checkpoint = one.checkpoint({"best": None}, "")
    other.restore(checkpoint)
    assert other.scaler.get_scale() == 2.0**39


# A loss that is not finite.


def poisoned() -> Batch:
    image, depth, mask = batch()
    depth[0, 0, 0, 0], mask[0, 0, 0, 0] = math.nan, True
    image[1] = math.inf
    return image, depth, mask


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_as_a_loss_that_is_not(clip: float) -> None:
    for nonfinite in ("skip", "stop"):
        one = learner(nonfinite=nonfinite, clip=clip, ema=0.9)
        one.learn(*batch(), rate=0.01, frozen=False)
        one.model.head.conv.weight.register_hook(lambda gradient: gradient / 0)
        before = states(one.model)
        if nonfinite == "stop":
            with pytest.raises(TrainingError, match="the gradient's norm is (nan|inf)"):
                one.learn(*batch(), rate=0.01, frozen=False)
        else:
            assert not math.isfinite(one.learn(*batch(), rate=0.01, frozen=False))
            assert equal(states(one.model), before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_that_is_skipped_leaves_no_trace(precision: str, parts: int) -> None:
    one = learner(
        nonfinite="skip", optimizer="adamw", ema=0.9, precision=precision, accumulate=parts, batch_size=4
    )
    one.learn(*batch(), rate=1e-3, frozen=False)
    before, optimizer = states(one.model), repr(one.optimizer.state_dict())
    assert one.average is not None
    average = states(one.average)
    assert not math.isfinite(one.learn(*poisoned(), rate=1e-3, frozen=False))
    assert equal(states(one.model), before) and equal(states(one.average), average)
    assert repr(one.optimizer.state_dict()) == optimizer
    assert math.isfinite(one.learn(*batch(seed=1), rate=1e-3, frozen=False))
    assert not equal(weights(one.model), {k: before[k] for k in weights(one.model)})


def test_a_batch_that_is_not_skipped_stops() -> None:
    with pytest.raises(TrainingError, match="the loss is nan"):
        learner().learn(*poisoned(), rate=1e-3, frozen=False)


# Compilation.


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    found = []
    for compiled in (False, True):
        config = TrainConfig(model="unet", precision="fp32", optimizer="sgd", freeze_batchnorm=True)
        one = Learner(config, CPU, World(), compile=compiled)
        found.append([one.learn(*batch(2, seed), rate=0.01, frozen=False) for seed in range(2)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


# Stochastic depth.


def test_stochastic_depth_leaves_blocks_out_in_training_alone() -> None:
    """With a probability near 1 the last block passes its input on; evaluation and the state dict do not change."""
    torch.manual_seed(0)
    network = create_model("unet_resnet50", weights=None).eval()
    image, names = torch.rand(2, 3, 64, 64), list(network.state_dict())
    plain = network(image)
    assert add_stochastic_depth(network, 0.999) == 16
    assert torch.equal(network(image), plain) and list(network.state_dict()) == names
    block = network.encoder.body.layer4[-1].train()
    features = torch.rand(2, 2048, 2, 2)
    assert torch.equal(block(features), features)


def test_stochastic_depth_is_a_function_of_seed_and_step() -> None:
    def trained(step: int) -> dict[str, Tensor]:
        one = learner(stochastic_depth=0.5)
        torch.manual_seed(step)  # whatever was drawn before
        one.learn(*batch(), rate=0.01, frozen=False, step=7 if step < 2 else 8)
        return states(one.model)

    first = trained(0)
    assert equal(first, trained(1)) and not equal(first, trained(2))
