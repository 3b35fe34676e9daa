"""The canonical camera, for which depth is learned and predicted.

A network cannot tell a near object seen through a wide lens from a far one seen through a long lens. Labels of another
camera are therefore divided, and predictions multiplied, by its focal length over the canonical one: the label
transformation of Yin et al., "Metric3D: Towards Zero-shot Metric 3D Prediction from A Single Image", ICCV 2023.
"""

import math

# Focal length as a fraction of the image's width: the Kinect of NYU Depth V2, 518.86 pixels at 640.
CANONICAL_FOCAL = 518.86 / 640


def depth_scale(focal_px: float, width: int) -> float:
    """Return the factor from canonical depth to the depth of an image of another camera; 1.0 for NYU Depth V2.

    Args:
        focal_px: focal length in pixels.
        width: width of the image in pixels, at which ``focal_px`` holds; of a portrait image the longer side, since a
            turned camera keeps its focal length.

    Raises:
        ValueError: if either is not a positive finite number.
    """
    scale = focal_px / (CANONICAL_FOCAL * width) if width > 0 else 0.0
    if not 0 < scale < float("inf"):
        raise ValueError(
            f"focal length {focal_px} px at a width of {width} px: expected two positive numbers"
        )
    return scale


def focal_length(width: int, fov: float) -> float:
    """Return the focal length in pixels of an image with a given horizontal field of view.

    Args:
        width: of the image in pixels.
        fov: horizontal field of view in degrees.

    Raises:
        ValueError: unless 1 < fov < 179.
    """
    if not 1 < fov < 179:
        raise ValueError(f"fov must be between 1 and 179 degrees, got {fov:g}")
    return width / 2 / math.tan(math.radians(fov) / 2)
