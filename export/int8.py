"""INT8 inside: onnxruntime's static quantisation, as QDQ, with what is known of the zoo's models."""

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from export.graph import ExportError, float_nodes, infer_shapes, layers, quiet
from export.pictures import Pictures

# An activation's range is what lies between its outermost ten-thousandths: one outlier among the hard-swish
# features of a MobileNet would leave the others few levels (depth changed by 10 cm on average, not by 3).
PERCENTILE = 99.99
FRAMES = 64
TOGETHER = (
    8  # frames whose activations are in memory at once, at most: onnxruntime wants a divisor of their number
)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands pictures, float32 (1, 3, h, w), to onnxruntime, which asks for a few at a time."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self.pictures = pictures
        self.set_range(0, len(pictures))

    def __len__(self) -> int:
        return len(self.pictures)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.waiting: Iterator[np.ndarray] = iter(self.pictures[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self.waiting, None)
        return None if picture is None else {"image": picture}


def quantize(
    model: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    keep: Collection[str] = (),
    only: Collection[str] | None = None,
    percentile: float = PERCENTILE,
) -> onnx.ModelProto:
    """An INT8 copy of a float32 graph: weights per channel and symmetric, activations per tensor and unsigned.

    The normalisation and the heads stay in float32: see :func:`export.graph.float_nodes`.

    Args:
        model: made by ``export.graph.trace``, of any or of a fixed size.
        pictures: float32 (1, 3, h, w) in [0, 1], to calibrate on.
        keep: layers that stay in float32 too, by the names in :func:`export.graph.layers`.
        only: quantise these layers alone.
        percentile: of each activation's values that lie within its range; 100 is all of them.

    Raises:
        ExportError: for an unknown layer.
    """
    known = layers(model)
    if unknown := sorted({*keep, *(only or ())} - known.keys()):
        raise ExportError(f"no layer {unknown[0]!r} in {model.graph.name}: there are {', '.join(known)}")
    together = max(count for count in range(1, TOGETHER + 1) if len(pictures) % count == 0)
    extra: dict[str, Any] = {"CalibStridedMinMax": together}  # for percentiles, too
    method = CalibrationMethod.MinMax
    if percentile < 100:
        method = CalibrationMethod.Percentile
        extra |= {"CalibPercentile": percentile, "CalibTensorRangeSymmetric": False}
    # It prints its progress.
    with tempfile.TemporaryDirectory() as folder, quiet(), contextlib.redirect_stdout(io.StringIO()):
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        # The exporter has folded what can be; onnxruntime would also take hard-swish apart.
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            made,
            Reader(pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=None if only is None else [known[name] for name in only],
            nodes_to_exclude=sorted(float_nodes(model) | {known[name] for name in keep}),
            calibrate_method=method,
            extra_options=extra,
        )
        quantized = onnx.load(made)
    infer_shapes(quantized)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized


def calibrated(
    model: onnx.ModelProto,
    source: Pictures,
    size: tuple[int, int],
    exact: bool = False,
    *,
    keep: Collection[str] = (),
    frames: int = FRAMES,
    percentile: float = PERCENTILE,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """``model`` in INT8 and, JSON-able, what it was calibrated on and what stayed in float32.

    Args:
        model: see :func:`quantize`.
        source: of the pictures to calibrate on.
        size: (H, W) that they are resized to: to about its pixels, their aspect kept.
        exact: ... to ``size`` itself.
        keep, percentile: see :func:`quantize`.
        frames: how many.
    """
    pictures = source.calibration(frames, size, exact)
    heads = [name for name, node in layers(model).items() if node in float_nodes(model)]
    facts = {**source.source, "frames": len(pictures), "percentile": percentile}
    facts["float"] = ["normalize", *heads, *keep]
    return quantize(model, pictures, keep, percentile=percentile), facts
