"""What a mean error hardly sees: whether depth edges are where they are in truth, and lines that are not there."""

import torch
from torch import Tensor

from depthzoo.losses import full_window, sobel

EDGES = (0.25, 0.5, 1.0)  # of the Sobel magnitude, metres
# Cycles per pixel: the Nyquist frequency is 1/2; lines are counted down to 1/16 below it.
LINES = (7 / 16, 1 / 2)
# A peak at the Nyquist frequency, and what it stands out from.
PEAK, BESIDE = (15 / 32, 1 / 2), (6 / 16, 7 / 16)


def edge_f1(prediction: Tensor, truth: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """How well depth edges are found, pixel by pixel: F1 = 2 hits / (edges predicted + edges in truth).

    An edge is where sqrt((Sx d)^2 + (Sy d)^2) is over the threshold, S the plain Sobel kernel, not divided by 8.
    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019, who take the thresholds of ``EDGES``.

    Args:
        prediction, truth: (N, 1, H, W) metres.
        mask: (N, 1, H, W) bool; a pixel counts where its whole 3x3 window does.
        threshold: metres.

    Returns:
        (N,) in [0, 1], NaN for a picture without an edge in truth.
    """
    counts = full_window(mask)
    found, known = (
        (sobel(depth).square().sum(1, keepdim=True).sqrt() > threshold) & counts
        for depth in (prediction, truth)
    )
    hits, predicted, there = (edges.flatten(1).sum(1) for edges in (found & known, found, known))
    return torch.where(there > 0, 2 * hits / (predicted + there), torch.nan)


def band_energy(depth: Tensor, band: tuple[float, float] = LINES) -> Tensor:
    """Mean power of a picture in a band of frequencies, under a Hann window.

    A frequency belongs to the band that the larger of its two components lies in, so that the last one, up to the
    Nyquist frequency, has all depth that changes from each row, column or pixel to the next and back, as an upsampling
    with a stride of two leaves it. Of one prediction it is held against the truth's at the same size: above 1 are
    lines that the scene has not, below 1 is blur.

    Args:
        depth: (N, 1, H, W) metres, as the network gives them: resizing moves the frequency.
        band: lowest and highest frequency, cycles per pixel; the highest belongs to it only if it is 1/2.

    Returns:
        (N,) square metres.

    Raises:
        ValueError: for another shape, or sides under 32.
    """
    if depth.ndim != 4 or depth.shape[1] != 1 or min(depth.shape[2:]) < 32:
        raise ValueError(f"depth must be (N, 1, H, W) with sides of 32 or more, got {tuple(depth.shape)}")
    plane = depth[:, 0].double()
    height, width = plane.shape[1:]
    window = torch.outer(
        *(torch.hann_window(side, periodic=True, dtype=plane.dtype) for side in (height, width))
    )
    window = window / window.square().mean().sqrt()
    centred = plane - (plane * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2(centred * window).abs().square() / (height * width) ** 2
    rows, columns = (torch.fft.fftfreq(side).abs() for side in (height, width))
    frequency = torch.maximum(rows[:, None], columns)
    low, high = band
    inside = (frequency >= low) & ((frequency < high) | (high == 0.5))
    return (power * inside).sum((1, 2))
