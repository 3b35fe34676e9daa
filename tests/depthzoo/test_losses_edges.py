"""What every loss owes: masks, empty batches, precision, extremes; and how losses are combined."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import depthzoo
from depthzoo import losses
from depthzoo.losses import MultiScaleLoss

NAMES = depthzoo.list_losses()


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def ramp(x: float, y: float = 0.0, start: float = 3.0, size: int = 7) -> Tensor:
    """A plane that rises by x metres per column and y per row."""
    steps = torch.arange(size, dtype=torch.float32)
    return (start + x * steps[None, :] + y * steps[:, None])[None, None]


def value(
    name: str, prediction: Tensor, target: Tensor, mask: Tensor | None = None, **options: object
) -> float:
    mask = everywhere(target) if mask is None else mask
    return float(depthzoo.create_loss(name, **options)(prediction, target, mask))


def random_batch(seed: int = 0, size: tuple[int, int] = (12, 15)) -> tuple[Tensor, Tensor, Tensor]:
    """Four pictures: full of truth, with holes, with one valid 4x4 block, with none."""
    g = torch.Generator().manual_seed(seed)
    prediction = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    target = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    mask = torch.rand(4, 1, *size, generator=g) < 0.93
    mask[0], mask[2], mask[3] = True, False, False
    mask[2, :, 3:7, 5:9] = True
    return prediction, target, mask


# Masks.


@pytest.mark.parametrize("name", NAMES)
def test_nothing_outside_the_mask_matters(name: str) -> None:
    p, d, mask = random_batch(5)
    expected = value(name, p, d, mask)
    for junk in (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30):
        target = torch.where(mask, d, junk)
        prediction = torch.where(mask, p, torch.tensor(junk)).requires_grad_()
        loss = depthzoo.create_loss(name)(prediction, target, mask)
        loss.backward()
        assert loss.item() == expected
        assert torch.isfinite(prediction.grad).all()
        assert (prediction.grad[~mask] == 0).all()
        assert (prediction.grad[mask] != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_mean_over_a_picture_then_over_the_pictures_that_have_any(name: str) -> None:
    p, d, mask = random_batch(6)
    loss = depthzoo.create_loss(name)
    if name == "berhu":  # its c is of the batch: the same largest error in each picture
        for i in range(3):
            p[i, 0, 4, 6], d[i, 0, 4, 6], mask[i, 0, 4, 6] = 20.0, 1.0, True
    alone = [loss(p[i : i + 1], d[i : i + 1], mask[i : i + 1]).item() for i in range(3)]
    assert loss(p, d, mask).item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_batch_without_truth_is_zero_with_a_gradient_of_zeros(name: str) -> None:
    prediction = (5 * torch.rand(2, 1, 5, 6)).requires_grad_()
    target = torch.full((2, 1, 5, 6), math.nan)
    loss = depthzoo.create_loss(name)(prediction, target, torch.zeros_like(target, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", ["gradient", "normal"])
def test_only_whole_windows_count(name: str) -> None:
    """Scattered truth has no 3x3 window; one window has one value."""
    target, mask = ramp(0), torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., ::2, ::2] = True
    assert value(name, ramp(1), target, mask) == 0
    mask[..., 2:5, 2:5] = True
    whole = {"gradient": 8.0, "normal": 1 - 1 / math.sqrt(65)}
    assert value(name, ramp(1), target, mask) == pytest.approx(whole[name])
    broken = torch.where(mask, ramp(1), 99.0)  # a step beside the window is not seen
    assert value(name, broken, target, mask) == pytest.approx(whole[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 2, 5, 6), (1, 2, 1, 5, 6), (5, 6)])
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """A loss of slopes would take the pictures of (N, H, W) for channels, and give another number."""
    depth = torch.ones(shape)
    with pytest.raises(ValueError, match=r"must have one shape \(N, 1, H, W\), got"):
        value(name, depth, depth)


# Numbers.


@pytest.mark.parametrize("name", NAMES)
def test_float32_under_autocast_and_from_half_precision(name: str) -> None:
    p, d, mask = random_batch(7)
    with torch.autocast("cpu", torch.bfloat16):
        loss = depthzoo.create_loss(name)(p, d, mask)
        assert loss.dtype == torch.float32
        assert loss.item() == value(name, p, d, mask)
    rounded = p.bfloat16()
    loss = depthzoo.create_loss(name)(rounded, d.double(), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == value(name, rounded.float(), d, mask)


@pytest.mark.parametrize("name", [*NAMES, "gradient_log"])
@pytest.mark.parametrize("depth", [0.001, 10.0, 0.0, -4.0, 1e4])
def test_gradient_is_finite_for_any_prediction(name: str, depth: float) -> None:
    target, mask = random_batch(8)[1:]
    target[0, 0, 0, 0], target[1, 0, 0, 0] = 1e-3, 10
    prediction = torch.full_like(target, depth)
    prediction[1] += 1e-4 * torch.rand_like(prediction[1])
    prediction.requires_grad_()
    loss = depthzoo.create_loss(name.removesuffix("_log"), **({"log": True} if name.endswith("_log") else {}))
    result = loss(prediction, target, mask)
    result.backward()
    assert torch.isfinite(result)
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_perfect_prediction_is_the_smallest_with_a_finite_gradient(name: str) -> None:
    _, target, mask = random_batch(9)
    prediction = target.clone().requires_grad_()
    loss = depthzoo.create_loss(name)(prediction, target, mask)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1.1e-3 if name == "silog" else 1e-6)
    assert torch.isfinite(prediction.grad).all()


# Building, and what is refused.


def test_combined_is_the_sum_of_mse_gradient_and_normal() -> None:
    p, d, mask = random_batch(10)
    parts = {name: value(name, p, d, mask) for name in NAMES if name != "combined"}
    assert value("combined", p, d, mask) == pytest.approx(parts["mse"] + parts["gradient"] + parts["normal"])
    weighted = value("combined", p, d, mask, terms={"l1": 0.5, "silog": 10.0})
    assert weighted == pytest.approx(0.5 * parts["l1"] + 10 * parts["silog"])
    options = {"silog": {"lambda_": 0.0}}
    plain = value("combined", p, d, mask, terms={"silog": 2.0}, options=options)
    assert plain == pytest.approx(2 * value("silog", p, d, mask, lambda_=0.0))


def test_combined_refuses_what_it_cannot_add_up() -> None:
    with pytest.raises(ValueError, match="at least one loss"):
        depthzoo.create_loss("combined", terms={})
    with pytest.raises(ValueError, match=r"unknown loss 'silogg': did you mean 'silog'"):
        depthzoo.create_loss("combined", terms={"silogg": 1.0})
    with pytest.raises(ValueError, match="options for silog, but the terms are mse"):
        depthzoo.create_loss("combined", terms={"mse": 1.0}, options={"silog": {"lambda_": 1.0}})


def test_multi_scale_upsamples_each_head_and_weighs_it() -> None:
    target = torch.full((2, 1, 16, 24), 2.0)
    heads = [torch.full((2, 1, 16 // s, 24 // s), 2.0 + e) for s, e in ((1, 1), (2, 2), (4, 3), (8, 4))]
    mask = everywhere(target)
    l1 = depthzoo.create_loss("l1")
    assert MultiScaleLoss(l1)(heads, target, mask).item() == pytest.approx(1 + 2 / 2 + 3 / 4 + 4 / 8)
    assert MultiScaleLoss(l1, (1.0, 10.0))(heads, target, mask).item() == pytest.approx(21)
    assert MultiScaleLoss(l1)(heads[:1], target, mask).item() == pytest.approx(1)


def test_multi_scale_keeps_invalid_pixels_out_and_sizes_that_do_not_divide() -> None:
    target = torch.full((1, 1, 33, 47), 2.0)
    target[..., ::3, ::5] = math.nan
    heads = [torch.full((1, 1, h, w), 3.0, requires_grad=True) for h, w in ((33, 47), (17, 24), (5, 6))]
    loss = MultiScaleLoss(depthzoo.create_loss("mse"))(heads, target, target.isfinite())
    assert loss.item() == pytest.approx(1.75)
    loss.backward()
    assert all((head.grad != 0).any() and head.grad.isfinite().all() for head in heads)


@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_and_masks_are_refused(name: str) -> None:
    x = torch.ones(2, 1, 5, 6)
    loss: Callable[..., Tensor] = depthzoo.create_loss(name)
    with pytest.raises(
        ValueError, match=r"one shape \(N, 1, H, W\), got \(2, 1, 5, 6\), \(2, 5, 6\), \(2, 1, 5, 6\)"
    ):
        loss(x, x[:, 0], everywhere(x))
    with pytest.raises(
        ValueError, match="one shape"
    ):  # broadcasting would pair every picture with every other
        loss(x, x, everywhere(x)[:1])
    with pytest.raises(ValueError, match=r"mask must be bool, got torch\.float32"):
        loss(x, x, x)


def test_unknown_loss_has_the_closest_names() -> None:
    with pytest.raises(ValueError, match=r"unknown loss 'berhoo': did you mean 'berhu'\?"):
        depthzoo.create_loss("berhoo")
    with pytest.raises(ValueError, match=r"there are: berhu, combined, gradient"):
        depthzoo.create_loss("xyzzy")


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_loss_of_the_global_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has one picture with truth, rank 1 two: the mean of the ranks' losses is the mean of three."""
    p, d, mask = random_batch(11)
    p[2, 0, 4, 6], d[2, 0, 4, 6] = 20, 1  # the largest error is on the other rank
    whole = value(name, p, d, mask)

    def all_reduce(x: Tensor, op: object = losses.dist.ReduceOp.SUM) -> None:
        x.fill_((p - d).abs()[mask].max() if op == losses.dist.ReduceOp.MAX else 3)

    monkeypatch.setattr(losses.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", all_reduce)
    ranks = [value(name, p[r], d[r], mask[r]) for r in (slice(0, 1), slice(1, 4))]
    assert sum(ranks) / 2 == pytest.approx(whole, rel=1e-5)
