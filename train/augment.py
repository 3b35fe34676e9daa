"""Augmentation of a batch on its device, each sample by draws of its own.

Geometry is one affine ``grid_sample`` (flip, rotation, zoom, shift) of the whole stored frame, which is first shrunk
with antialiasing to about the output's size, as evaluation shrinks it. Labels are canonical depth (see
``depthzoo.camera``): metres divided by the camera's scale and by the zoom, since a magnified picture looks as if
taken from nearer by. Depth is sampled by nearest. Outside the frame the picture is white, like the border of the
labelled frames, and the depth is invalid.
"""

import io
import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from depthzoo.camera import depth_scale
from train.config import AugmentConfig
from train.loading import Batch

# Frames that a CPU works on at a time: what lies between the steps stays in its cache.
CPU_PART = 4
# Weights of red, green and blue in a pixel's grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# A batch whose aspect differs from a frame's by more than this factor gets a crop of it; by less, the whole, squeezed.
MAX_SQUEEZE = 1.2
# Pixels of the shrunk frame per output pixel. The bilinear samples that follow blur a little; at this factor the
# energy of edges is that of a picture that evaluation has resized.
SHRINK_MARGIN = 1.3
# Standard deviation of the strongest blur, in output pixels, and the range of JPEG quality.
BLUR_SIGMA, JPEG_QUALITY = 1.5, (30, 95)


def _spread(draws: Tensor, largest: float) -> Tensor:
    """[0, 1) to [-largest, largest)."""
    return (2 * draws - 1) * largest


def view(stored: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Stored pixels per output pixel at zoom 1, vertical and horizontal.

    The whole frame fills the output, or where the aspects differ by more than ``MAX_SQUEEZE`` as much of it as keeps
    its aspect.
    """
    step_y, step_x = (old / new for old, new in zip(stored, size, strict=True))
    if max(step_x / step_y, step_y / step_x) > MAX_SQUEEZE:
        step_y = step_x = min(step_y, step_x)
    return step_y, step_x


def geometry(batch: Batch, size: tuple[int, int], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """The affine matrix of each sample and the divisor of its depth.

    Returns:
        (N, 2, 3) float32 for ``affine_grid`` (normalised output to normalised input), and (N,) float32, the factor
        from canonical depth to metres.
    """
    draws = torch.from_numpy(batch.draws).float()
    height, width = size
    stored_height, stored_width = batch.image.shape[-2:]
    low, high = config.zoom
    zoom = low * (high / low) ** draws[:, 0]
    angle = _spread(draws[:, 1], math.radians(config.rotate))
    mirror = torch.where(draws[:, 2] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(zoom)
    whole_y, whole_x = view((stored_height, stored_width), size)
    step_y, step_x = whole_y / zoom, whole_x / zoom
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
    # The focal length per width of what the output shows is that of the frame, times what is cut off, times the zoom.
    return matrix, zoom * depth_scale(batch.focal_px, max(stored_height, stored_width)) * (
        stored_width / (width * whole_x)
    )


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, h, w) uint8 with antialiasing to ``SHRINK_MARGIN`` times the output's resolution; never enlarged."""
    stored = (image.shape[-2], image.shape[-1])
    steps = view(stored, size)
    smaller = [min(old, round(SHRINK_MARGIN * old / step)) for old, step in zip(stored, steps, strict=True)]
    if smaller == list(stored):
        return image
    image = image if image.device.type == "cpu" else image.float()  # other devices have no kernel for uint8
    return F.interpolate(image, size=smaller, mode="bilinear", align_corners=False, antialias=True)


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


def degrade(image: Tensor, draws: np.ndarray, config: AugmentConfig) -> Tensor:
    """Blur, sensor noise and JPEG artefacts, each in some of the pictures.

    Args:
        image: (N, 3, H, W) float32 in [0, 1].
        draws: (N, DRAWS).
        config: how often, and how much noise.

    Returns:
        The same shape and range.
    """
    image = image.clone()
    offsets = torch.arange(-3, 4, device=image.device)
    for index in np.flatnonzero(draws[:, 17] < config.blur):
        sigma = BLUR_SIGMA * max(draws[index, 18], 0.1)
        weights = torch.exp(-offsets.square() / (2 * sigma**2))
        weights = (weights / weights.sum()).view(1, 1, 7, 1)
        soft = F.conv2d(F.pad(image[index, :, None], (0, 0, 3, 3), mode="replicate"), weights)
        soft = F.conv2d(F.pad(soft, (3, 3, 0, 0), mode="replicate"), weights.mT)
        image[index] = soft[:, 0]
    for index in np.arange(len(image) if config.noise else 0):
        generator = torch.Generator(image.device).manual_seed(int(draws[index, 20] * 2**53))
        noise = torch.randn(image.shape[1:], generator=generator, device=image.device)
        image[index] += config.noise * draws[index, 19] * noise
    image.clamp_(0, 1)
    low, high = JPEG_QUALITY
    for index in np.flatnonzero(draws[:, 21] < config.jpeg):
        pixels = (image[index] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(low + (high - low) * draws[index, 22]))
        image[index] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
    return image


def augment(
    batch: Batch,
    size: tuple[int, int],
    config: AugmentConfig,
    device: torch.device,
    depth_range: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch ready for the network.

    Args:
        batch: stored frames and their draws.
        size: (H, W) of the result.
        config: what may vary, and how far.
        device: where the work is done.
        depth_range: canonical metres that the network can give; labels outside are invalid.

    Returns:
        image (N, 3, H, W) float32 in [0, 1]; canonical depth (N, 1, H, W) float32 metres; mask (N, 1, H, W) bool.
    """
    if device.type == "cpu" and len(batch.draws) > CPU_PART:
        cuts = [slice(start, start + CPU_PART) for start in range(0, len(batch.draws), CPU_PART)]
        parts = [
            replace(
                batch, image=batch.image[c], depth=batch.depth[c], draws=batch.draws[c], keys=batch.keys[c]
            )
            for c in cuts
        ]
        done = [augment(part, size, config, device, depth_range) for part in parts]
        image, depth, mask = (torch.cat(column) for column in zip(*done, strict=True))
        return image, depth, mask
    matrix, scale = geometry(batch, size, config)
    draws = torch.from_numpy(batch.draws).float().to(device)
    # Not at half precision where the caller is: coordinates need theirs.
    with torch.autocast(device.type, enabled=False):
        grid = sampling_grid(matrix.to(device), size)
        # The negative, since what lies outside reads as 0 and should be white.
        negative = (255 - shrink(batch.image.to(device), size)).float()
        image = recolour(F.grid_sample(negative, grid, mode="bilinear", align_corners=False), draws, config)
        # int16 holds the bits of uint16.
        steps = (batch.depth.to(device).int() & 0xFFFF).float()
        depth = F.grid_sample(steps, grid, mode="nearest", align_corners=False)
        depth *= (batch.depth_unit / scale).to(device).view(-1, 1, 1, 1)
        if config.cutdepth:
            cut_depth(image, depth, batch.draws, config.cutdepth)
        if config.blur or config.noise or config.jpeg:
            image = degrade(image, batch.draws, config)
    # An absent label is 0, whatever the range.
    mask = (depth > max(depth_range[0], 0.0)) & (depth < depth_range[1])
    return image, depth, mask
