"""Synthetic indoor rooms with exact metric depth, seen by a camera like the Kinect's."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from depthzoo.camera import CANONICAL_FOCAL
from train.rooms.raycast import View, cast
from train.rooms.scene import arrange, arrange_varied
from train.rooms.sensor import develop
from train.rooms.shading import radiance

SMALLEST = 32
VERSION = 2  # of what a seed shows; 1 left out the light of the further room in a room of many lamps


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with its principal point in the picture's middle.

    `focal_px` pixels at the picture's width; `pitch` (up is positive), `roll` (clockwise is positive) in
    radians; `height` metres above the floor.
    """

    focal_px: float
    pitch: float
    roll: float
    height: float


@dataclass(frozen=True)
class Room:
    """A picture, its depth, and the camera.

    `image` is (H, W, 3) uint8 RGB; `depth` (H, W) float32 metres along the optical axis at pixel centres, all
    in 0.4..10 unless the room is a varied one: those reach from 0.2 m to beyond 10 m.
    """

    image: np.ndarray
    depth: np.ndarray
    camera: Camera


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors gain little from threads, and wait long for one another where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def render(seed: int, size: tuple[int, int] = (480, 640), varied: bool = False) -> Room:
    """Render the room of a seed at a size (height, width).

    The scene and the camera's pose are the seed's alone, the horizontal field of view is the Kinect's at any
    width: sizes of one aspect show the same view. Equal arguments give equal results; no global random state is
    used.

    `varied` shows another room of the seed: from close-ups to halls, seen through lenses of 0.75 to 1.6 times the
    canonical focal length (four in ten rooms; the others have the canonical one), by a camera that may shake, be
    out of focus, expose wrongly or be noisy. Depth stays metres: divide it by
    `depthzoo.camera.depth_scale(room.camera.focal_px, width)` for the canonical depth that a network learns.

    Raises ValueError for a negative seed, a side below 32 pixels, or a height above twice the width.
    """
    seed, (height, width) = operator.index(seed), map(operator.index, size)
    if seed < 0:
        raise ValueError(f"seed {seed}: expected 0 or more")
    if min(height, width) < SMALLEST or height > 2 * width:
        raise ValueError(
            f"size {height}x{width}: expected sides >= {SMALLEST} and a height <= twice the width"
        )
    with torch.inference_mode(), _one_thread():
        scene = arrange_varied(seed) if varied else arrange(seed)
        pose = scene.viewpoint
        focal = CANONICAL_FOCAL * width * pose.lens
        # Samples lie half a pixel apart; the odd ones are pixel centres, where depth is read.
        xs = (torch.arange(2 * width + 1) - width) / (2 * focal)
        ys = (torch.arange(2 * height + 1) - height) / (2 * focal)
        view = View(torch.tensor(pose.position, dtype=torch.float32), pose.axes(), xs, ys)
        depth, index = cast(scene.solids, view)
        image = develop(radiance(scene, view, depth, index), seed, varied)
    return Room(
        image.numpy(),
        depth[1::2, 1::2].numpy().copy(),
        Camera(focal, pose.pitch, pose.roll, pose.position[2]),
    )
