"""Losses against values computed by hand, NumPy and SciPy; masks, precision, extremes, sums of losses."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

import depthzoo
from depthzoo import losses
from depthzoo.losses import MultiScaleLoss

NAMES = depthzoo.list_losses()
every_loss = pytest.mark.parametrize("name", NAMES)


def batch(values: list[list[float]]) -> Tensor:
    return torch.tensor(values)[None, None]


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
    """Four images: full of valid pixels, with holes, with one valid 4x4 block, with none."""
    g = torch.Generator().manual_seed(seed)
    prediction = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    target = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    mask = torch.rand(4, 1, *size, generator=g) < 0.93
    mask[0], mask[2], mask[3] = True, False, False
    mask[2, :, 3:7, 5:9] = True
    return prediction, target, mask


# By hand.


def test_the_losses_there_are() -> None:
    assert NAMES == ["berhu", "combined", "gradient", "l1", "mse", "normal", "silog"]
    assert depthzoo.list_losses("*e*") == ["berhu", "combined", "gradient", "mse"]


def test_mse_and_l1_by_hand() -> None:
    prediction, target = batch([[1, 2], [3, 4]]), batch([[1, 1], [5, 4]])
    assert value("mse", prediction, target) == 1.25
    assert value("l1", prediction, target) == 0.75


def test_berhu_by_hand_on_both_branches() -> None:
    target = batch([[5, 5], [5, 5]])
    prediction = batch([[5.5, 4], [2, 10]]).requires_grad_()
    loss = depthzoo.create_loss("berhu")(prediction, target, everywhere(target))
    # c = 0.2 * 5 = 1: 0.5 and 1 as they are, 3 to (9 + 1)/2 and 5 to (25 + 1)/2.
    assert loss.item() == pytest.approx((0.5 + 1 + 5 + 13) / 4)
    loss.backward()
    # Slopes 1 up to c and e/c beyond; none through c itself, which would add -6 at the largest error.
    torch.testing.assert_close(prediction.grad, batch([[0.25, -0.25], [-0.75, 1.25]]))


def test_berhu_takes_the_largest_error_of_the_batch_and_not_of_the_image() -> None:
    target = torch.full((2, 1, 1, 1), 5.0)
    prediction = torch.tensor([6.0, 10.0]).view(2, 1, 1, 1)
    assert value("berhu", prediction, target) == pytest.approx((1 + 13) / 2)
    # c = 5 with a fraction of 1: all of it is linear.
    assert value("berhu", prediction, target, fraction=1.0) == pytest.approx((1 + 5) / 2)


def test_berhu_of_a_perfect_prediction_is_zero() -> None:
    assert value("berhu", ramp(0.1), ramp(0.1)) == 0


@pytest.mark.parametrize(("x", "y"), [(0.25, 0.0), (0.0, -0.5), (0.125, 0.375)])
def test_gradient_of_a_ramp_is_eight_slopes_in_each_direction(x: float, y: float) -> None:
    flat = torch.full_like(ramp(0), 2.0)
    assert value("gradient", ramp(x, y), flat) == pytest.approx(8 * (abs(x) + abs(y)))
    assert value("gradient", ramp(x, y), ramp(x, y, start=1.0)) == pytest.approx(0, abs=1e-5)
    logs = math.log(8 * abs(x) + 0.5) + math.log(8 * abs(y) + 0.5)
    assert value("gradient", ramp(x, y), flat, log=True) == pytest.approx(logs)


def test_normal_of_planes_by_angle() -> None:
    flat, slope = ramp(0), ramp(1 / 8)  # n = (-1, 0, 1): 45 degrees
    assert value("normal", slope, flat) == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)
    assert value("normal", slope, ramp(-1 / 8)) == pytest.approx(1, abs=1e-6)
    assert value("normal", slope, ramp(0, 1 / 8)) == pytest.approx(1 - 1 / 2, abs=1e-6)
    assert value("normal", ramp(math.sqrt(3) / 8), flat) == pytest.approx(1 - 0.5, abs=1e-6)
    assert value("normal", slope, ramp(1 / 8, start=7)) == pytest.approx(0, abs=1e-6)


def test_silog_by_hand() -> None:
    target = batch([[1, 2], [3, 4]])
    # A factor: g is ln 2 everywhere, sqrt(1 - lambda) of it is left.
    assert value("silog", 2 * target, target) == pytest.approx(math.log(2) * math.sqrt(0.15), rel=1e-5)
    assert value("silog", 2 * target, target, lambda_=0.0) == pytest.approx(math.log(2))
    assert value("silog", 2 * target, target, lambda_=1.0) == pytest.approx(0, abs=1.1e-3)
    half = target * batch([[2, 1], [2, 1]])  # g is ln 2 in one half
    assert value("silog", half, target) == pytest.approx(math.log(2) * math.sqrt(0.5 - 0.85 / 4))


def test_silog_over_the_batch_counts_an_error_of_one_images_scale() -> None:
    """Of two images one is predicted twice too far: per image lambda forgives it, over the batch it is variance."""
    target = torch.full((2, 1, 4, 4), 2.0)
    prediction = target.clone()
    prediction[1] *= 2
    g = math.log(2)
    each = (math.sqrt(1e-6) + g * math.sqrt(0.15)) / 2
    assert value("silog", prediction, target) == pytest.approx(each, rel=1e-3)
    over_all = g * math.sqrt(0.5 - 0.85 / 4)
    assert value("silog", prediction, target, batch=True) == pytest.approx(over_all, rel=1e-5)


def test_silog_over_the_batch_weighs_pixels_alike() -> None:
    target = torch.full((2, 1, 1, 4), 1.0)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]]).view(2, 1, 1, 4)
    prediction = torch.tensor([[math.e, 9, 9, 9], [1, 1, 1, 9]]).view(2, 1, 1, 4)
    expected = math.sqrt(1 / 4 - 0.85 / 16)
    assert value("silog", prediction, target, mask, batch=True) == pytest.approx(expected, rel=1e-5)


def test_silog_clamps_logarithms_at_a_millimetre() -> None:
    target = batch([[1.0]])
    for prediction in (1e-3, 1e-9, 0.0, -3.0):
        assert value("silog", batch([[prediction]]), target, lambda_=0.0) == pytest.approx(math.log(1000))


# Against NumPy and SciPy.


def reference(name: str, p: np.ndarray, d: np.ndarray, m: np.ndarray, c: float) -> float:
    """The loss of one image, (H, W) float64; NaN without a pixel that counts."""

    def sobels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scipy.ndimage.sobel(x, axis=1), scipy.ndimage.sobel(x, axis=0)

    whole = scipy.ndimage.binary_erosion(m, np.ones((3, 3)))  # false at the border
    e = np.where(m, d - p, 0)
    with np.errstate(invalid="ignore"):
        if name == "mse":
            return float(e[m].__pow__(2).mean()) if m.any() else math.nan
        if name == "l1":
            return float(np.abs(e[m]).mean()) if m.any() else math.nan
        if name == "berhu":
            a = np.abs(e[m])
            return float(np.where(a <= c, a, (a**2 + c**2) / (2 * c)).mean()) if m.any() else math.nan
        if name == "silog":
            g = np.log(p[m]) - np.log(d[m])
            return float(np.sqrt((g**2).mean() - 0.85 * g.mean() ** 2)) if m.any() else math.nan
        if not whole.any():
            return math.nan
        if name == "gradient":
            return float(sum(np.abs(s[whole]).mean() for s in sobels(d - p)))
        if name == "gradient_log":
            return float(sum(np.log(np.abs(s[whole]) + 0.5).mean() for s in sobels(d - p)))
        n = [np.stack([-sx, -sy, np.ones_like(sx)]) for sx, sy in (sobels(p), sobels(d))]
        n = [x / np.linalg.norm(x, axis=0) for x in n]
        return float((1 - (n[0] * n[1]).sum(0))[whole].mean())


def reference_batch(name: str, p: Tensor, d: Tensor, mask: Tensor, c: float | None = None) -> float:
    if c is None:
        c = 0.2 * float((p - d).abs()[mask].max())
    images = zip(p[:, 0].double().numpy(), d[:, 0].double().numpy(), mask[:, 0].numpy(), strict=True)
    return float(np.nanmean([reference(name, *image, c) for image in images]))


FORMULAS = [(n, n, {}) for n in NAMES if n != "combined"] + [("gradient", "gradient_log", {"log": True})]


@pytest.mark.parametrize(("name", "formula", "options"), FORMULAS, ids=[f for _, f, _ in FORMULAS])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_numpy_and_scipy(name: str, formula: str, options: dict, seed: int) -> None:
    p, d, mask = random_batch(seed)
    assert value(name, p, d, mask, **options) == pytest.approx(reference_batch(formula, p, d, mask), rel=1e-5)


@pytest.mark.parametrize(("name", "formula", "options"), FORMULAS, ids=[f for _, f, _ in FORMULAS])
def test_gradient_agrees_with_differences_of_the_formula(name: str, formula: str, options: dict) -> None:
    """Central differences in float64, c of the BerHu held still as the loss detaches it."""
    p, d, mask = random_batch(3, (6, 7))
    prediction = p.clone().requires_grad_()
    depthzoo.create_loss(name, **options)(prediction, d, mask).backward()
    c, step = 0.2 * float((p - d).abs()[mask].max()), 1e-5
    p = p.double()
    for place in [(0, 0, 0, 0), (0, 0, 2, 3), (1, 0, 3, 3), (1, 0, 5, 6), (2, 0, 4, 5), (3, 0, 1, 1)]:
        up, down = p.clone(), p.clone()
        up[place] += step
        down[place] -= step
        slope = (reference_batch(formula, up, d, mask, c) - reference_batch(formula, down, d, mask, c)) / (
            2 * step
        )
        assert prediction.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-6), place


# Masks.


@every_loss
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


@every_loss
def test_mean_over_an_image_then_over_the_images_with_valid_pixels(name: str) -> None:
    p, d, mask = random_batch(6)
    loss = depthzoo.create_loss(name)
    if name == "berhu":  # its c is of the batch: the same largest error in each image
        for i in range(3):
            p[i, 0, 4, 6], d[i, 0, 4, 6], mask[i, 0, 4, 6] = 20.0, 1.0, True
    alone = [loss(p[i : i + 1], d[i : i + 1], mask[i : i + 1]).item() for i in range(3)]
    assert loss(p, d, mask).item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@every_loss
def test_batch_without_valid_pixels_is_zero_with_a_gradient_of_zeros(name: str) -> None:
    prediction = (5 * torch.rand(2, 1, 5, 6)).requires_grad_()
    target = torch.full((2, 1, 5, 6), math.nan)
    loss = depthzoo.create_loss(name)(prediction, target, torch.zeros_like(target, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", ["gradient", "normal"])
def test_only_whole_windows_count(name: str) -> None:
    """Scattered pixels have no 3x3 window; one window has one value."""
    target, mask = ramp(0), torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., ::2, ::2] = True
    assert value(name, ramp(1), target, mask) == 0
    mask[..., 2:5, 2:5] = True
    whole = {"gradient": 8.0, "normal": 1 - 1 / math.sqrt(65)}
    assert value(name, ramp(1), target, mask) == pytest.approx(whole[name])
    broken = torch.where(mask, ramp(1), 99.0)  # a step beside the window is not seen
    assert value(name, broken, target, mask) == pytest.approx(whole[name])


# Numbers.


@every_loss
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


@every_loss
def test_a_scalar_on_the_meta_device(name: str) -> None:
    prediction, target, mask = (x.to("meta") for x in random_batch())
    loss = depthzoo.create_loss(name)(prediction, target, mask)
    assert loss.is_meta and loss.shape == () and loss.dtype == torch.float32


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


@every_loss
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


@every_loss
def test_other_shapes_and_masks_are_refused(name: str) -> None:
    """A gradient would take the images of (N, H, W) for channels, and broadcasting would pair all images."""
    loss, x = depthzoo.create_loss(name), torch.ones(2, 1, 5, 6)
    bad = [(torch.ones(shape),) * 2 for shape in ((2, 5, 6), (2, 2, 5, 6), (1, 2, 1, 5, 6), (5, 6))]
    for prediction, target in (*bad, (x, x[:, 0]), (x, x[:1])):
        with pytest.raises(ValueError, match=r"one shape \(N, 1, H, W\), got \("):
            loss(prediction, target, everywhere(prediction))
    with pytest.raises(ValueError, match=r"mask must be bool, got torch\.float32"):
        loss(x, x, x)


@every_loss
def test_two_ranks_give_the_loss_of_the_global_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has one image with valid pixels, rank 1 two: the mean of the ranks' losses is the mean of three."""
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
