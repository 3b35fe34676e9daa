"""Augmentation of a batch, one variation per sample, on whatever device the batch is.

Geometry is one affine ``grid_sample``: flip, rotation, zoom and shift. A picture that is magnified looks as if
taken from nearer by, so its depth is divided by the magnification; the magnification is measured against the
reference camera, which makes the stored frames' own crop and size drop out. Depth is read by nearest, and what
lies outside the frame is white, like the border of the labelled frames, and invalid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import AugmentConfig
from train.loading import Batch

# The Kinect of NYU Depth V2: focal length in pixels of a frame of 480x640.
REFERENCE_FOCAL, REFERENCE_SIZE = 518.86, (480, 640)


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


def recolour(image: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Brightness, contrast, saturation, gamma, order of channels, grey; (N, 3, H, W) float in [0, 1]."""

    def column(index: int) -> Tensor:
        return draws[:, index].view(-1, 1, 1, 1)

    luma = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    if config.saturation or config.grey:
        grey = (image * luma).sum(1, keepdim=True)
        amount = 1 + _spread(column(5), config.saturation)
        amount = torch.where(column(6) < config.grey, 0.0, amount)
        image = grey + (image - grey) * amount
    if config.contrast:
        centre = (image * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        image = centre + (image - centre) * (1 + _spread(column(7), config.contrast))
    if config.brightness:
        image = image * (1 + _spread(column(8), config.brightness))
    image = image.clamp(0, 1)
    if config.gamma > 1:
        image = image.clamp(min=1e-4) ** (config.gamma ** _spread(column(9), 1.0))
    if config.channel_swap:
        orders = torch.tensor(
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], device=image.device
        )
        chosen = (draws[:, 11] * 6).long().clamp(max=5)
        chosen = torch.where(draws[:, 10] < config.channel_swap, chosen, 0)
        image = image.gather(1, orders[chosen].view(-1, 3, 1, 1).expand_as(image))
    return image


def cut_depth(image: Tensor, depth: Tensor, mask: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Shows the depth, from near (0) to the picture's farthest (1), in a rectangle of some of the pictures."""
    height, width = image.shape[-2:]
    a, b, c, d = (draws[:, index].view(-1, 1, 1, 1) for index in (12, 13, 14, 15))
    left, top = a * width, b * height
    # The paper's patch: from a random corner, at most 3/4 of what is left of the picture.
    right, bottom = left + (width - left) * c * 0.75, top + (height - top) * d * 0.75
    x = torch.arange(width, device=image.device).view(1, 1, 1, -1)
    y = torch.arange(height, device=image.device).view(1, 1, -1, 1)
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom) & mask
    inside &= draws[:, 16].view(-1, 1, 1, 1) < probability
    farthest = depth.amax((2, 3), keepdim=True).clamp(min=1e-3)
    return torch.where(inside, depth / farthest, image)


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
    matrix, zoom = geometry(batch, size, config)
    grid = F.affine_grid(matrix.to(device), [len(zoom), 1, *size], align_corners=False)
    # White is 0 while sampling, since what lies outside reads as 0.
    image = 1 - F.grid_sample(
        1 - batch.image.to(device).float() / 255, grid, mode="bilinear", align_corners=False
    )
    depth = F.grid_sample(batch.depth.to(device).float() / 1000, grid, mode="nearest", align_corners=False)
    depth = depth / zoom.to(device).view(-1, 1, 1, 1)
    draws = torch.from_numpy(batch.draws).float().to(device)
    image, mask = recolour(image, draws, config), depth > 0
    if config.cutdepth:
        image = cut_depth(image, depth, mask, draws, config.cutdepth)
    return image, depth, mask
