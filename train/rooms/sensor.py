"""Camera: what a cheap colour sensor makes of linear radiance."""

from math import cos, pi, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from train.rooms.pieces import Generator


def _smear(g: Generator, width: int) -> Tensor | None:
    """A kernel (K, K) of camera motion and defocus for a picture of a width; None: a steady, sharp one."""
    motion = width * np.exp(g.uniform(np.log(0.003), np.log(0.016))) if g.uniform() < 0.28 else 0.0
    radius = width * np.exp(g.uniform(np.log(0.0015), np.log(0.006))) if g.uniform() < 0.22 else 0.0
    angle, bend = g.uniform(0, pi), g.normal(0, 0.2)
    if motion + radius < 0.5:
        return None
    reach = int(np.ceil(motion / 2 + radius)) + 1
    along = np.linspace(-0.5, 0.5, 2 * reach + 1)  # time, while the shutter is open
    across = bend * (along**2 - 1 / 12)
    x = motion * (along * cos(angle) - across * sin(angle))
    y = motion * (along * sin(angle) + across * cos(angle))
    grid = np.arange(-reach, reach + 1)
    distance = np.hypot(grid[None, None] - x[:, None, None], grid[None, :, None] - y[:, None, None])
    kernel = np.clip(radius + 0.5 - distance, 0, 1 if radius > 0.5 else None) + 1e-9
    if radius <= 0.5:
        kernel = np.exp(-(distance**2) / 0.5)
    kernel = kernel.sum(0)
    return torch.tensor(kernel / kernel.sum(), dtype=torch.float32)


def _exposure(g: Generator) -> float:
    """Mean of the exposed picture; a tenth each is over- and underexposed."""
    key, wrong = g.normal(-1.45, 0.4), g.uniform()
    if wrong < 0.2:
        key += g.uniform(0.4, 0.8) if wrong < 0.1 else -g.uniform(0.5, 1.1)
    return float(np.exp(key))


def develop(linear: Tensor, seed: int, varied: bool = False) -> Tensor:
    """Picture (H, W, 3) uint8 of linear RGB (3, 2H+1, 2W+1): exposure, white balance, vignette, noise, gamma.

    Output pixel (i, j) is centred on sample (2i + 1, 2j + 1). A varied camera may also shake, be out of focus,
    expose wrongly, be noisier in the dark, and miss the colour of the light by far.
    """
    g = np.random.default_rng([seed, 3 if varied else 1])
    tent = torch.tensor([1.0, 2.0, 1.0]) / 4
    image = linear.clamp(max=4)[:, None]
    picture = conv2d(image, (tent[:, None] * tent)[None, None], stride=2)[:, 0]  # (3, H, W)
    height, width = picture.shape[1:]
    if varied and (kernel := _smear(g, width)) is not None:
        margin = [min(len(kernel) // 2, height - 1, width - 1)] * 4
        kernel = kernel[
            (edge := len(kernel) // 2 - margin[0]) : len(kernel) - edge, edge : len(kernel) - edge
        ]
        smeared = pad(picture[:, None], margin, mode="reflect")
        picture = conv2d(smeared, kernel[None, None] / kernel.sum())[:, 0]
    bright = picture.mean(0).flatten()[::7].clamp(max=2)
    key = (_exposure(g) if varied else np.exp(g.normal(-1.45, 0.32))) / float(bright.mean())
    balance = torch.tensor(np.exp(g.normal(0, 0.12 if varied else 0.07, 3)), dtype=torch.float32)
    grey = picture.flatten(1).mean(1)
    # an imperfect automatic white balance
    balance = balance * (grey.mean() / grey) ** g.uniform(0.0 if varied else 0.2, 0.9 if varied else 0.8)
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height) * height / width
    fall = 1 - g.uniform(0, 0.35) * (x.square() + y.square()[:, None]) / (1 + (height / width) ** 2)
    picture = picture * balance[:, None, None] * (key * fall)
    generator = torch.Generator().manual_seed(seed)
    shot, read = g.uniform(0.004, 0.025), g.uniform(0.001, 0.006)
    noise = torch.randn(3, height, width, generator=generator)
    if varied:
        gain = float(np.clip(key * g.uniform(0.7, 1.6), 0.5, 6.0))  # what little light is amplified by
        shot, read = shot * gain**0.5, read * gain
        coarse = avg_pool2d(pad(noise[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
        noise = noise + g.uniform(0, 1.2) * (
            2 * coarse - noise
        )  # of neighbours alike, as demosaicing leaves it
    picture = picture + noise * (picture.clamp(min=0) * shot**2 + read**2).sqrt()
    picture = picture.clamp(0, 1) ** (1 / g.uniform(2.0, 2.4))
    blur = g.uniform(-0.35, 0.45)  # negative sharpens, as the Kinect's sensor does
    soft = avg_pool2d(pad(picture[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    picture = picture + blur * (soft - picture)
    contrast = g.uniform(0.4, 1.6)
    clipped = picture.clamp(0, 1)
    picture = clipped + contrast * (clipped * clipped * (3 - 2 * clipped) - clipped)
    grey = picture.mean(0)
    picture = grey + (g.uniform(0.5, 1.35) if varied else g.uniform(0.8, 1.25)) * (picture - grey)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
