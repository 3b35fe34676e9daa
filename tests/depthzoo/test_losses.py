"""Losses against values computed by hand, against NumPy and SciPy, and at the edges."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

import depthzoo

NAMES = ["berhu", "combined", "gradient", "l1", "mse", "normal", "silog"]


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
    """Four pictures: full of truth, with holes, with one valid 4x4 block, with none."""
    g = torch.Generator().manual_seed(seed)
    prediction = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    target = 0.5 + 9 * torch.rand(4, 1, *size, generator=g)
    mask = torch.rand(4, 1, *size, generator=g) < 0.93
    mask[0], mask[2], mask[3] = True, False, False
    mask[2, :, 3:7, 5:9] = True
    return prediction, target, mask


# By hand.


def test_the_losses_there_are() -> None:
    assert depthzoo.list_losses() == NAMES
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


def test_berhu_takes_the_largest_error_of_the_batch_and_not_of_the_picture() -> None:
    target = torch.full((2, 1, 1, 1), 5.0)
    prediction = torch.tensor([6.0, 10.0]).view(2, 1, 1, 1)
    assert value("berhu", prediction, target) == pytest.approx((1 + 13) / 2)
    # c = 5 with a share of 1: all of it is linear.
    assert value("berhu", prediction, target, share=1.0) == pytest.approx((1 + 5) / 2)


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


def test_silog_over_the_batch_counts_an_error_of_one_pictures_scale() -> None:
    """Of two pictures one is predicted twice too far: per picture lambda forgives it, over the batch it is variance."""
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
    """The loss of one picture, (H, W) float64; NaN without a pixel that counts."""

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
    pictures = zip(p[:, 0].double().numpy(), d[:, 0].double().numpy(), mask[:, 0].numpy(), strict=True)
    return float(np.nanmean([reference(name, *picture, c) for picture in pictures]))


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
