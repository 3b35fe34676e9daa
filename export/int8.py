"""Quantize a graph to INT8 with onnxruntime's static quantization (QDQ)."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

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

from export.graph import float_nodes, infer_shapes, quiet

# The percentage of an activation's values within its range. With all of them, one outlier among the hard-swish
# features of a MobileNet leaves few levels to the others: the depth moves by 10 cm on average instead of 3.
PERCENTILE = 99.99
# Images to calibrate on, and how many have their activations in memory at once.
IMAGES = 64
IN_MEMORY = 8


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Passes images, float32 (1, 3, h, w), to onnxruntime a few at a time."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = images
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.remaining: Iterator[np.ndarray] = iter(self.images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.remaining, None)
        return None if image is None else {"image": image}


def quantize(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return an INT8 copy of a float32 graph: weights per channel and symmetric, activations per tensor and unsigned.

    The normalization and the heads stay in float32: see :func:`export.graph.float_nodes`.

    Args:
        model: a graph from ``export.graph.trace``, of dynamic or fixed size.
        images: to calibrate on, float32 (1, 3, h, w) in [0, 1].
    """
    # onnxruntime uses only a multiple of this many images.
    stride = max(count for count in range(1, IN_MEMORY + 1) if len(images) % count == 0)
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),  # onnxruntime prints its progress
    ):
        prepared, result = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        # The exporter has folded what can be folded; onnxruntime would also decompose hard-swish.
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(float_nodes(model)),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibStridedMinMax": stride,  # applies to percentiles, too
                "CalibPercentile": PERCENTILE,
                "CalibTensorRangeSymmetric": False,
            },
        )
        quantized = onnx.load(result)
    infer_shapes(quantized)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized
