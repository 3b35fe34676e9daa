"""Measures that a mean error hardly reflects: where depth edges are, and lines that the scene does not have."""

import torch
from torch import Tensor

from depthzoo.losses import full_window, sobel

EDGES = (0.25, 0.5, 1.0)  # thresholds of the Sobel magnitude, metres
# Bands of frequencies, cycles per pixel. The Nyquist frequency is 1/2; lines are counted down to 1/16 below it.
LINES = (7 / 16, 1 / 2)
# A peak at the Nyquist frequency, and the band that it stands out from.
PEAK, BESIDE = (15 / 32, 1 / 2), (6 / 16, 7 / 16)


def edge_f1(prediction: Tensor, target: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Return the F1 score of depth edges, pixel by pixel: 2 hits / (predicted edges + true edges).

    An edge is where sqrt((Sx d)^2 + (Sy d)^2) exceeds the threshold, with the plain Sobel kernel, not divided by 8.
    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019, who use the thresholds of ``EDGES``.

    Args:
        prediction, target: (N, 1, H, W) metres.
        mask: (N, 1, H, W) bool; a pixel counts where its whole 3x3 window is valid.
        threshold: metres.

    Returns:
        (N,) in [0, 1]; NaN for an image without a true edge.
    """
    counts = full_window(mask)
    found, known = (
        (sobel(depth).square().sum(1, keepdim=True).sqrt() > threshold) & counts
        for depth in (prediction, target)
    )
    hits, predicted, true = (edges.flatten(1).sum(1) for edges in (found & known, found, known))
    return torch.where(true > 0, 2 * hits / (predicted + true), torch.nan)


def band_power(depth: Tensor, band: tuple[float, float] = LINES) -> Tensor:
    """Return the mean power of depth maps in a band of frequencies, under a Hann window.

    A frequency belongs to the band of the larger of its two components. The last band, up to the Nyquist frequency,
    thus holds all depth that alternates between rows, columns or pixels, as upsampling with a stride of two leaves
    it. The power of a prediction is divided by that of the target at the same size: above 1 are lines that the scene
    does not have, below 1 is blur.

    Args:
        depth: (N, 1, H, W) metres, as the network returns them: resizing moves the frequency.
        band: lowest and highest frequency, cycles per pixel. The highest is included only if it is 1/2.

    Returns:
        (N,) square metres.

    Raises:
        ValueError: another shape, or sides under 32.
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
