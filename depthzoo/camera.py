"""The canonical camera, to which all depth refers.

A network cannot tell a near object seen by a wide lens from a far one seen by a long lens. Depth is therefore
learnt and predicted for one camera, and multiplied by a factor where a picture comes from another one: the label
transformation of Yin et al., "Metric3D: Towards Zero-shot Metric 3D Prediction from A Single Image", ICCV 2023.
"""

# Focal length as a fraction of the picture's width: the Kinect of NYU Depth V2, 518.86 pixels at 640.
CANONICAL_FOCAL = 518.86 / 640


def depth_scale(focal_px: float, width: int) -> float:
    """Return the factor from canonical depth to the depth of a picture of another camera.

    Multiply a prediction by it; divide a label by it. 1.0 for the Kinect of NYU Depth V2.

    Args:
        focal_px: horizontal focal length of the picture in pixels.
        width: width of the picture in pixels, as it is fed to the network or before it is resized.

    Raises:
        ValueError: if either is not a positive finite number.
    """
    scale = focal_px / (CANONICAL_FOCAL * width) if width > 0 else 0.0
    if not 0 < scale < float("inf"):
        raise ValueError(
            f"focal length {focal_px} px at a width of {width} px: expected two positive numbers"
        )
    return scale
