"""Edges and lines: measures with known answers."""

import math

import pytest
import torch

from train.reproduction.measures import BESIDE, LINES, PEAK, band_power, edge_f1

SHAPE = (1, 1, 64, 96)


def step(column: int, height: float = 2.0) -> torch.Tensor:
    """Depth of 1 m that rises by ``height`` at a column."""
    depth = torch.ones(SHAPE)
    depth[..., column:] += height
    return depth


def test_edges_where_they_are_in_truth() -> None:
    whole = torch.ones(SHAPE, dtype=torch.bool)
    assert edge_f1(step(40), step(40), whole, 0.5).tolist() == [1.0]
    # An edge of a step is two pixels wide: one of them is hit where it is off by one, none by two.
    assert edge_f1(step(41), step(40), whole, 0.5).tolist() == [0.5]
    assert edge_f1(step(42), step(40), whole, 0.5).tolist() == [0.0]
    assert edge_f1(torch.ones(SHAPE), step(40), whole, 0.5).tolist() == [0.0]


def test_an_edge_is_a_sobel_magnitude_over_the_threshold() -> None:
    whole = torch.ones(SHAPE, dtype=torch.bool)
    low = step(40, 0.2)  # 4 times that: 0.8 m
    assert edge_f1(low, step(40), whole, 0.75).tolist() == [1.0]
    assert edge_f1(low, step(40), whole, 0.85).tolist() == [0.0]


def test_pixels_that_do_not_count_and_images_without_an_edge() -> None:
    whole = torch.ones(SHAPE, dtype=torch.bool)
    left = whole.clone()
    left[..., 30:] = False
    both = step(20) + step(60)
    assert edge_f1(step(20), both, left, 0.5).tolist() == [1.0]
    assert edge_f1(step(20), both, whole, 0.5).item() == pytest.approx(2 / 3)
    assert math.isnan(edge_f1(step(20), torch.ones(SHAPE), whole, 0.5).item())


@pytest.mark.parametrize("lines", ["rows", "columns", "checkerboard"])
def test_the_power_of_lines_is_the_square_of_their_height(lines: str) -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    sign = 1 - 2 * ({"rows": y, "columns": x, "checkerboard": x + y}[lines] % 2)
    depth = 3 + 0.1 * sign.float()
    assert band_power(depth[None, None]).item() == pytest.approx(0.01, rel=1e-4)
    assert band_power(2 * depth[None, None]).item() == pytest.approx(0.04, rel=1e-4)


def test_what_is_no_line_has_no_power() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    smooth = torch.stack([torch.full_like(x, 4.0), 1 + 5 * x, 2 + torch.sin(20 * y)])[:, None]
    assert band_power(smooth).max() < 1e-6
    # Lines four pixels apart are at half the Nyquist frequency.
    wide = 3 + 0.1 * (torch.arange(96) % 4 // 2).float().expand(1, 1, 64, 96)
    assert band_power(wide).item() < 1e-6


def test_lines_are_found_on_top_of_a_room() -> None:
    room = step(40)
    lines = 0.05 * (1 - 2 * (torch.arange(64) % 2)).float()[:, None]
    assert band_power(room + lines).item() == pytest.approx(band_power(room).item() + 0.0025, rel=0.02)


def test_only_lines_stand_out_from_what_is_beside_them() -> None:
    noise = torch.rand(16, 1, 64, 96, generator=torch.Generator().manual_seed(0))

    def peak(depth: torch.Tensor) -> float:
        at, beside = (band_power(depth, band).sum() for band in (PEAK, BESIDE))
        plain, below = (band_power(noise, band).sum() for band in (PEAK, BESIDE))
        return float(at / beside / (plain / below))

    assert peak(3 * noise) == pytest.approx(1)  # larger everywhere
    lines = 0.1 * (1 - 2 * (torch.arange(96) % 2)).float()
    assert peak(noise + lines) > 1.5
    blurred = torch.nn.functional.avg_pool2d(noise + lines, 3, stride=1, padding=1)
    assert peak(blurred) > peak(torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1))


def test_bands_share_out_all_the_power() -> None:
    depth = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    parts = [band_power(depth, band) for band in ((0.0, 0.25), (0.25, BESIDE[0]), BESIDE, LINES)]
    assert torch.allclose(sum(parts, torch.zeros(2)), band_power(depth, (0.0, 0.5)))
    assert band_power(depth, PEAK).lt(band_power(depth, LINES)).all()


def test_depth_of_another_shape_is_refused() -> None:
    for shape in ((1, 3, 64, 64), (64, 64), (1, 1, 16, 64)):
        with pytest.raises(ValueError, match=r"depth must be \(N, 1, H, W\)"):
            band_power(torch.ones(shape))
