"""Augmentation of a batch, one variation per sample, on whatever device the batch is.

Geometry is one affine ``grid_sample``: flip, rotation, zoom and shift. A picture that is magnified looks as if
taken from nearer by, so its depth is divided by the magnification; the magnification is measured against the
reference camera, which makes the stored frames' own crop and size drop out. Depth is read by nearest, and what
lies outside the frame is white, like the border of the labelled frames, and invalid.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import AugmentConfig
from train.loading import Batch

# The Kinect of NYU Depth V2: focal length in pixels of a frame of 480x640.
REFERENCE_FOCAL, REFERENCE_SIZE = 518.86, (480, 640)
# Frames that a CPU works on at a time: what lies between the steps stays in its cache.
CPU_PART = 4
# Share of red, green and blue in a pixel's grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def _spread(draws: Tensor, largest: float) -> Tensor:
    """[0, 1) to [-largest, largest)."""
    return (2 * draws - 1) * largest


def geometry(batch: Batch, size: tuple[int, int], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """The affine matrix of each sample and its magnification.

    Returns:
        (N, 2, 3) float32 for ``affine_grid`` (normalised output to normalised input), and (N,) float32.
    """
    draws = torch.from_numpy(batch.draws).float()
    height, width = size
    stored_height, stored_width = batch.image.shape[-2:]
    low, high = config.zoom
    zoom = low * (high / low) ** draws[:, 0]
    angle = _spread(draws[:, 1], math.radians(config.rotate))
    mirror = torch.where(draws[:, 2] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(zoom)
    # Stored pixels per output pixel; the reference frame is squeezed into the output as evaluation does it.
    reference_y, reference_x = (
        REFERENCE_FOCAL * out / full for out, full in zip(size, REFERENCE_SIZE, strict=True)
    )
    step_x, step_y = batch.focal_px / (reference_x * zoom), batch.focal_px / (reference_y * zoom)
    # In pixels from the centre: stored = R * step * M * out + shift, with M the mirror.
    room_x = (stored_width - width * step_x).clamp(min=0) / 2
    room_y = (stored_height - height * step_y).clamp(min=0) / 2
    shift_x, shift_y = (2 * draws[:, 3] - 1) * room_x, (2 * draws[:, 4] - 1) * room_y
    cos, sin = torch.cos(angle), torch.sin(angle)
    out_x, out_y, in_x, in_y = step_x * width / 2, step_y * height / 2, 2 / stored_width, 2 / stored_height
    matrix = torch.stack(
        [
            torch.stack([cos * mirror * out_x * in_x, -sin * out_y * in_x, shift_x * in_x], dim=1),
            torch.stack([sin * mirror * out_x * in_y, cos * out_y * in_y, shift_y * in_y], dim=1),
        ],
        dim=1,
    )
    return matrix, zoom


def sampling_grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """``affine_grid`` for pixel centres, (N, H, W, 2), as a sum of a row and a column: a quarter of its time."""
    x, y = (torch.arange(1 - n, n, 2, device=matrix.device, dtype=matrix.dtype) / n for n in reversed(size))
    column, row, shift = (part.view(-1, 1, 1, 2) for part in matrix.unbind(2))
    return column * x.view(1, 1, -1, 1) + (row * y.view(1, -1, 1, 1) + shift)


def colour_map(mean: Tensor, draws: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Saturation or grey, then contrast about the mean grey, then brightness, then the order of channels: all that
    is linear in a pixel's colour, as one map ``matrix @ colour + offset`` of each sample.

    Args:
        mean: (N, 3) mean colour of the pictures in [0, 1].
        draws: (N, DRAWS) float32.
        config: how far each may go.

    Returns:
        matrix (N, 3, 3), whose rows have one sum, and offset (N, 1, 1).
    """
    luma, ones = mean.new_tensor(LUMA), torch.ones(len(mean), 1, 1, device=mean.device)
    amount = 1 + _spread(draws[:, 5], config.saturation)
    amount = torch.where(draws[:, 6] < config.grey, 0.0, amount).view(-1, 1, 1)
    contrast = 1 + _spread(draws[:, 7], config.contrast).view(-1, 1, 1)
    brightness = 1 + _spread(draws[:, 8], config.brightness).view(-1, 1, 1)
    # A colour is moved along the line to its grey, which leaves the grey as it was.
    matrix = brightness * contrast * (amount * torch.eye(3, device=mean.device) + (1 - amount) * luma)
    offset = ones * brightness * (1 - contrast) * (mean * luma).sum(1).view(-1, 1, 1)
    if config.channel_swap:
        chosen = (draws[:, 11] * 6).long().clamp(max=5)
        chosen = torch.where(draws[:, 10] < config.channel_swap, chosen, 0)
        orders = torch.tensor(CHANNEL_ORDERS, device=mean.device)[chosen]
        matrix = matrix.gather(1, orders.unsqueeze(2).expand(-1, -1, 3))
    return matrix, offset


def recolour(negative: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Applies :func:`colour_map` and gamma.

    Args:
        negative: (N, 3, H, W) float32, 255 minus the stored colours.
        draws: (N, DRAWS) float32.
        config: how far each may go.

    Returns:
        (N, 3, H, W) float32 in [0, 1].
    """
    matrix, offset = colour_map(1 - negative.mean((2, 3)) / 255, draws, config)
    # matrix @ (1 - negative / 255) + offset, without a picture in between.
    image = torch.bmm(matrix / -255, negative.flatten(2)).add_(matrix.sum(2, keepdim=True) + offset)
    image = image.view_as(negative)
    if config.gamma == 1:
        return image.clamp_(0, 1)
    exponent = config.gamma ** _spread(draws[:, 9], 1.0)
    # Half the time of a power.
    return image.clamp_(1e-4, 1).log2_().mul_(exponent.view(-1, 1, 1, 1)).exp2_()


def cut_depth(image: Tensor, depth: Tensor, draws: np.ndarray, probability: float) -> None:
    """Shows the depth, from near (0) to the picture's farthest (1), in a rectangle of some of the pictures.

    Args:
        image: (N, 3, H, W) float32, changed in place where the rectangle has depth.
        depth: (N, 1, H, W) metres, 0 invalid.
        draws: (N, DRAWS).
        probability: that a picture has a rectangle.
    """
    height, width = image.shape[-2:]
    farthest = depth.amax((2, 3), keepdim=True).clamp(min=1e-3)
    for index in np.flatnonzero(draws[:, 16] < probability):
        x, y, wide, high = draws[index, 12:16]
        # The paper's patch: from a random corner, at most 3/4 of what is left of the picture, at least a pixel.
        left, top = int(x * width), int(y * height)
        columns = slice(left, left + max(1, round((width - left) * wide * 0.75)))
        rows = slice(top, top + max(1, round((height - top) * high * 0.75)))
        picture, metres = image[index, :, rows, columns], depth[index, :, rows, columns]
        picture.copy_(torch.where(metres > 0, metres / farthest[index], picture))


def augment(
    batch: Batch, size: tuple[int, int], config: AugmentConfig, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch ready for the network.

    Args:
        batch: stored frames and their draws.
        size: (H, W) of the result.
        config: what may vary, and how far.
        device: where the work is done.

    Returns:
        image (N, 3, H, W) float32 in [0, 1]; depth (N, 1, H, W) float32 metres; mask (N, 1, H, W) bool.
    """
    if device.type == "cpu" and len(batch.draws) > CPU_PART:
        cuts = [slice(start, start + CPU_PART) for start in range(0, len(batch.draws), CPU_PART)]
        parts = [
            Batch(batch.image[cut], batch.depth[cut], batch.draws[cut], batch.focal_px, batch.keys[cut])
            for cut in cuts
        ]
        done = [augment(part, size, config, device) for part in parts]
        image, depth, mask = (torch.cat(column) for column in zip(*done, strict=True))
        return image, depth, mask
    matrix, zoom = geometry(batch, size, config)
    draws = torch.from_numpy(batch.draws).float().to(device)
    # Not at half precision where the caller is: coordinates need theirs.
    with torch.autocast(device.type, enabled=False):
        grid = sampling_grid(matrix.to(device), size)
        # The negative, since what lies outside reads as 0 and should be white.
        negative = (255 - batch.image.to(device)).float()
        image = recolour(F.grid_sample(negative, grid, mode="bilinear", align_corners=False), draws, config)
        depth = F.grid_sample(batch.depth.to(device).float(), grid, mode="nearest", align_corners=False)
        depth /= (1000 * zoom).to(device).view(-1, 1, 1, 1)
        if config.cutdepth:
            cut_depth(image, depth, batch.draws, config.cutdepth)
    return image, depth, depth > 0
