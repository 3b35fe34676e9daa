"""The canonical camera, to which all depth refers.

A network cannot tell a near object seen by a wide lens from a far one seen by a long lens. Depth is therefore
learnt and predicted for one camera, and multiplied by a factor where a picture comes from another one: the label
transformation of Yin et al., "Metric3D: Towards Zero-shot Metric 3D Prediction from A Single Image", ICCV 2023.
"""

import math

# Focal length as a fraction of the picture's width: the Kinect of NYU Depth V2, 518.86 pixels at 640.
CANONICAL_FOCAL = 518.86 / 640


def depth_scale(focal_px: float, width: int) -> float:
    """Return the factor from canonical depth to the depth of a picture of another camera.

    Multiply a prediction by it; divide a label by it. 1.0 for the Kinect of NYU Depth V2.

    Args:
        focal_px: horizontal focal length of the picture in pixels.
        width: width of the picture in pixels, as it is fed to the network or before it is resized; of a
            portrait picture the longer side, for a camera that is turned keeps its focal length.

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
    """Return the focal length in pixels of a picture ``width`` pixels wide, from its horizontal field of view.

    Args:
        width: width of the picture in pixels.
        fov: field of view in degrees, across the width.

    Raises:
        ValueError: unless 1 < fov < 179.
    """
    if not 1 < fov < 179:
        raise ValueError(f"fov must be between 1 and 179 degrees, got {fov:g}")
    return width / 2 / math.tan(math.radians(fov) / 2)
