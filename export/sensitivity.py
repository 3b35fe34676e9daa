"""Which layers the depth owes its INT8 error to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.graph import float_nodes, layers
from export.int8 import PERCENTILE, quantize
from export.run_onnx import open_session


@dataclass(frozen=True, order=True)
class Moved:
    """How far the depth moves where one layer alone is INT8: metres, and the layer's name."""

    mean: float
    max: float
    layer: str


def sensitivity(
    model: onnx.ModelProto,
    calibration: Sequence[np.ndarray],
    pictures: Sequence[np.ndarray],
    percentile: float = PERCENTILE,
) -> Iterator[Moved]:
    """Quantises one layer at a time, in the graph's order.

    Args:
        model: float32.
        calibration: float32 (1, 3, h, w), to calibrate on; see :func:`export.int8.quantize`.
        pictures: the same, to look at the depth of.
        percentile: see :func:`export.int8.quantize`.
    """
    expected = depths(model, pictures)
    keep = float_nodes(model)
    for layer, node in layers(model).items():
        if node not in keep:
            quantized = quantize(model, calibration, only=[layer], percentile=percentile)
            apart = np.abs(depths(quantized, pictures) - expected)
            yield Moved(float(apart.mean()), float(apart.max()), layer)


def depths(model: onnx.ModelProto, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """All depths in a row, metres."""
    session = open_session(model.SerializeToString(), "cpu")
    return np.concatenate([session.run(["depth"], {"image": picture})[0].ravel() for picture in pictures])
