"""Augmentation of a batch on its device, with independent random draws for each sample.

Geometry is one affine ``grid_sample`` (flip, rotation, zoom, shift) of the whole stored frame, which is first shrunk
with antialiasing to about the output's size, as in evaluation. Labels are canonical depth (see ``depthzoo.camera``):
metres divided by the camera's scale and by the zoom, since a magnified image looks as if taken from nearer by. Depth
is sampled by nearest neighbor. Outside the frame the image is white, like the border of the labelled frames, and the
depth is invalid.
"""

import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from depthzoo.camera import depth_scale
from train.config import AugmentConfig
from train.order import Draws

# Frames that a CPU processes at a time, so that intermediate results stay in its cache.
CPU_PART = 4
# Weights of red, green and blue in a pixel's grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# A frame is cropped to the output's aspect if the two differ by more than this factor, else squeezed.
MAX_SQUEEZE = 1.2
# Pixels of the shrunk frame per output pixel. Bilinear sampling follows, which blurs a little; with this factor the
# energy of edges is that of an image resized for evaluation.
SHRINK_MARGIN = 1.3
# Standard deviation of the strongest blur, in output pixels, and the range of JPEG quality.
BLUR_SIGMA, JPEG_QUALITY = 1.5, (30, 95)


@dataclass(frozen=True)
class Batch:
    """Stored frames with the random draws of their augmentation."""

    image: Tensor  # (N, 3, h, w) uint8
    depth: Tensor  # (N, 1, h, w) int16, the bits of the stored uint16 steps; 0 is invalid
    draws: np.ndarray  # (N, number of Draws) float64 in [0, 1)
    focal_px: float  # of the stored frames
    keys: list[str]
    depth_unit: float = 0.001  # metres per step of depth


def as_tensors(image: np.ndarray, depth: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert uint8 (h, w, 3) and uint16 (h, w) to (3, h, w) uint8 and (1, h, w) int16 with the same bits."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    # torch has few operations on uint16.
    return torch.from_numpy(planes), torch.from_numpy(depth.astype(np.int16)).unsqueeze(0)


def _spread(draws: Tensor, largest: float) -> Tensor:
    """[0, 1) to [-largest, largest)."""
    return (2 * draws - 1) * largest


def view(stored: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return the stored pixels per output pixel at zoom 1, vertical and horizontal.

    The whole frame fills the output; if the aspects differ by more than ``MAX_SQUEEZE``, the largest crop does that
    keeps the frame's aspect.
    """
    step_y, step_x = (old / new for old, new in zip(stored, size, strict=True))
    if max(step_x / step_y, step_y / step_x) > MAX_SQUEEZE:
        step_y = step_x = min(step_y, step_x)
    return step_y, step_x


def geometry(batch: Batch, size: tuple[int, int], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Return a matrix for ``affine_grid`` (N, 2, 3), and the factor from canonical depth to metres (N,)."""
    draws = Draws(*torch.from_numpy(batch.draws).float().unbind(1))
    height, width = size
    stored_height, stored_width = batch.image.shape[-2:]
    low, high = config.zoom
    zoom = low * (high / low) ** draws.zoom
    angle = _spread(draws.rotate, math.radians(config.rotate))
    mirror = torch.where(draws.flip < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(zoom)
    whole_y, whole_x = view((stored_height, stored_width), size)
    step_y, step_x = whole_y / zoom, whole_x / zoom
    # In pixels from the center: stored = R * step * M * out + shift, with M the mirror.
    room_x = (stored_width - width * step_x).clamp(min=0) / 2
    room_y = (stored_height - height * step_y).clamp(min=0) / 2
    shift_x, shift_y = (2 * draws.shift_x - 1) * room_x, (2 * draws.shift_y - 1) * room_y
    cos, sin = torch.cos(angle), torch.sin(angle)
    out_x, out_y, in_x, in_y = step_x * width / 2, step_y * height / 2, 2 / stored_width, 2 / stored_height
    matrix = torch.stack(
        [
            torch.stack([cos * mirror * out_x * in_x, -sin * out_y * in_x, shift_x * in_x], dim=1),
            torch.stack([sin * mirror * out_x * in_y, cos * out_y * in_y, shift_y * in_y], dim=1),
        ],
        dim=1,
    )
    # The focal length per width of the output is that of the frame, times what is cropped, times the zoom.
    camera = depth_scale(batch.focal_px, max(stored_height, stored_width))
    return matrix, zoom * camera * (stored_width / (width * whole_x))


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, 3, h, w) uint8 with antialiasing to ``SHRINK_MARGIN`` times the output's resolution; never enlarge."""
    stored = (image.shape[-2], image.shape[-1])
    steps = view(stored, size)
    smaller = [min(old, round(SHRINK_MARGIN * old / step)) for old, step in zip(stored, steps, strict=True)]
    if smaller == list(stored):
        return image
    image = image if image.device.type == "cpu" else image.float()  # other devices have no kernel for uint8
    return F.interpolate(image, size=smaller, mode="bilinear", align_corners=False, antialias=True)


def sampling_grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """``affine_grid`` for pixel centers, (N, H, W, 2), as the sum of a row and a column: four times as fast."""
    x, y = (torch.arange(1 - n, n, 2, device=matrix.device, dtype=matrix.dtype) / n for n in reversed(size))
    column, row, shift = (part.view(-1, 1, 1, 2) for part in matrix.unbind(2))
    return column * x.view(1, 1, -1, 1) + (row * y.view(1, -1, 1, 1) + shift)


def color_matrix(mean: Tensor, draws: Draws, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Compose the linear color changes, ``matrix @ color + offset``: (N, 3, 3) with rows of equal sums, (N, 1, 1).

    In order: saturation or grey, contrast about the mean grey, brightness, the order of channels. ``mean`` is the mean
    color (N, 3) of the images.
    """
    luma, ones = mean.new_tensor(LUMA), torch.ones(len(mean), 1, 1, device=mean.device)
    amount = 1 + _spread(draws.saturation, config.saturation)
    amount = torch.where(draws.grey < config.grey, 0.0, amount).view(-1, 1, 1)
    contrast = 1 + _spread(draws.contrast, config.contrast).view(-1, 1, 1)
    brightness = 1 + _spread(draws.brightness, config.brightness).view(-1, 1, 1)
    # A color moves along the line to its grey, which leaves the grey as it was.
    matrix = brightness * contrast * (amount * torch.eye(3, device=mean.device) + (1 - amount) * luma)
    offset = ones * brightness * (1 - contrast) * (mean * luma).sum(1).view(-1, 1, 1)
    if config.channel_swap:
        chosen = (draws.channel_order * 6).long().clamp(max=5)
        chosen = torch.where(draws.channel_swap < config.channel_swap, chosen, 0)
        orders = torch.tensor(CHANNEL_ORDERS, device=mean.device)[chosen]
        matrix = matrix.gather(1, orders.unsqueeze(2).expand(-1, -1, 3))
    return matrix, offset


def recolor(negative: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Apply :func:`color_matrix` and gamma to 255 minus the stored colors (N, 3, H, W); the result is in [0, 1]."""
    matrix, offset = color_matrix(1 - negative.mean((2, 3)) / 255, draws, config)
    # matrix @ (1 - negative / 255) + offset, without an intermediate image.
    image = torch.bmm(matrix / -255, negative.flatten(2)).add_(matrix.sum(2, keepdim=True) + offset)
    image = image.view_as(negative)
    if config.gamma == 1:
        return image.clamp_(0, 1)
    exponent = config.gamma ** _spread(draws.gamma, 1.0)
    # Twice as fast as a power.
    return image.clamp_(1e-4, 1).log2_().mul_(exponent.view(-1, 1, 1, 1)).exp2_()


def degrade(image: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Add blur, sensor noise and JPEG artefacts, each to some of the images (N, 3, H, W) in [0, 1]."""
    image = image.clone()
    offsets = torch.arange(-3, 4, device=image.device)
    for index in np.flatnonzero(draws.blur < config.blur):
        sigma = BLUR_SIGMA * max(draws.blur_sigma[index], 0.1)
        weights = torch.exp(-offsets.square() / (2 * sigma**2))
        weights = (weights / weights.sum()).view(1, 1, 7, 1)
        soft = F.conv2d(F.pad(image[index, :, None], (0, 0, 3, 3), mode="replicate"), weights)
        soft = F.conv2d(F.pad(soft, (3, 3, 0, 0), mode="replicate"), weights.mT)
        image[index] = soft[:, 0]
    for index in np.arange(len(image) if config.noise else 0):
        generator = torch.Generator(image.device).manual_seed(int(draws.noise_seed[index] * 2**53))
        noise = torch.randn(image.shape[1:], generator=generator, device=image.device)
        image[index] += config.noise * draws.noise[index] * noise
    image.clamp_(0, 1)
    low, high = JPEG_QUALITY
    for index in np.flatnonzero(draws.jpeg < config.jpeg):
        pixels = (image[index] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        buffer = io.BytesIO()
        quality = int(low + (high - low) * draws.jpeg_quality[index])
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        image[index] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
    return image


def augment(
    batch: Batch,
    size: tuple[int, int],
    config: AugmentConfig,
    device: torch.device,
    depth_range: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn stored frames into a batch for the network.

    Args:
        batch: stored frames and their draws.
        size: (H, W) of the result.
        config: what may vary, and how far.
        device: where the work is done.
        depth_range: canonical metres that the network can predict; labels outside are invalid.

    Returns:
        image (N, 3, H, W) float32 in [0, 1]; canonical depth (N, 1, H, W) float32 metres; mask (N, 1, H, W) bool.
    """
    if device.type == "cpu" and len(batch.draws) > CPU_PART:
        parts = [
            replace(batch, image=batch.image[cut], depth=batch.depth[cut], draws=batch.draws[cut])
            for start in range(0, len(batch.draws), CPU_PART)
            for cut in [slice(start, start + CPU_PART)]
        ]
        results = [augment(part, size, config, device, depth_range) for part in parts]
        image, depth, mask = (torch.cat(column) for column in zip(*results, strict=True))
        return image, depth, mask
    matrix, scale = geometry(batch, size, config)
    draws = Draws(*torch.from_numpy(batch.draws).float().to(device).unbind(1))
    # Autocast is off: coordinates need float32.
    with torch.autocast(device.type, enabled=False):
        grid = sampling_grid(matrix.to(device), size)
        # The negative, since grid_sample reads 0 outside the frame, which is to be white.
        negative = (255 - shrink(batch.image.to(device), size)).float()
        image = recolor(F.grid_sample(negative, grid, mode="bilinear", align_corners=False), draws, config)
        # int16 holds the bits of uint16.
        steps = (batch.depth.to(device).int() & 0xFFFF).float()
        depth = F.grid_sample(steps, grid, mode="nearest", align_corners=False)
        depth *= (batch.depth_unit / scale).to(device).view(-1, 1, 1, 1)
        if config.blur or config.noise or config.jpeg:
            image = degrade(image, Draws(*batch.draws.T), config)
    # An invalid label is 0, whatever the range.
    mask = (depth > max(depth_range[0], 0.0)) & (depth < depth_range[1])
    return image, depth, mask
