"""Random images for tests."""

import numpy as np
from PIL import Image


def noise(height: int = 50, width: int = 70, seed: int = 0) -> Image.Image:
    """Return a smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
