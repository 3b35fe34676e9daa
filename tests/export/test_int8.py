"""INT8 inside, and the layer by layer look at what it costs."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from depthzoo.models import DepthModel
from export import int8
from export.graph import ExportError, initializers, layers
from export.int8 import Reader, calibrated, quantize
from export.pictures import Pictures
from export.run_onnx import OnnxDepth
from export.sensitivity import depths, sensitivity
from export.to_onnx import finish

BODY = ["fine.0", "coarse.0", "merge.0"]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return Pictures().calibration(4, (64, 96), exact=True)


def in_float(model: onnx.ModelProto) -> set[str]:
    """The convolutions whose weights are still float32."""
    weights = initializers(model)
    return {
        layer
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights
        for layer in [node.input[1].removesuffix(".weight")]
    }


def test_convolutions_become_int8_and_the_head_does_not(
    tiny_graph: onnx.ModelProto, pictures: list[np.ndarray]
) -> None:
    assert list(layers(tiny_graph)) == [*BODY, "head.conv"]
    quantized = quantize(tiny_graph, pictures)
    onnx.checker.check_model(quantized, full_check=True)
    assert in_float(quantized) == {"head.conv"}
    types = Counter(tensor.data_type for tensor in quantized.graph.initializer if tensor.dims)
    assert types[TensorProto.INT8] >= 3 and types[TensorProto.INT32] >= 3
    counts = Counter(node.op_type for node in quantized.graph.node)
    assert counts["Conv"] == 4 and counts["Relu"] == 0 and counts["QuantizeLinear"] >= 4
    producers = {name: node for node in quantized.graph.node for name in node.output}
    node = producers["depth"]
    while node.op_type != "Conv":  # nothing between the head and the depth is rounded to 256 steps
        assert node.op_type in {"Add", "Mul", "Sigmoid", "Resize"}
        node = producers[node.input[0]]
    far = np.abs(depths(quantized, pictures) - depths(tiny_graph, pictures))
    assert 0 < far.mean() < 0.1


def test_layers_can_be_kept_in_float(tiny_graph: onnx.ModelProto, pictures: list[np.ndarray]) -> None:
    assert in_float(quantize(tiny_graph, pictures, keep=["fine.0"])) == {"fine.0", "head.conv"}
    assert in_float(quantize(tiny_graph, pictures, only=["merge.0"])) == {"fine.0", "coarse.0", "head.conv"}
    with pytest.raises(ExportError, match="no layer 'fine.1' in tiny: there are fine.0, coarse.0"):
        quantize(tiny_graph, pictures, keep=["fine.1"])


def test_outliers_are_cut_off(tiny_graph: onnx.ModelProto, pictures: list[np.ndarray]) -> None:
    def widest(percentile: float, shown: list[np.ndarray]) -> float:
        scales = [
            float(numpy_helper.to_array(tensor))
            for tensor in quantize(tiny_graph, shown, percentile=percentile).graph.initializer
            if tensor.name.startswith("relu") and tensor.name.endswith("_scale")
        ]
        return max(scales)

    spoilt = [picture.copy() for picture in pictures]
    spoilt[0][0, :, :4, :4] = 50
    assert widest(100, spoilt) > 5 * widest(100, pictures)
    assert widest(99, spoilt) < 1.2 * widest(99, pictures)


def test_the_reader_hands_out_a_range() -> None:
    numbered = [np.full((1, 3, 32, 32), index, np.float32) for index in range(5)]
    reader = Reader(numbered)
    reader.set_range(1, 3)
    seen = [float(item["image"].flat[0]) for item in iter(reader.get_next, None)]
    assert seen == [1, 2] and len(reader) == 5


def test_it_says_what_it_was_calibrated_on(tiny_graph: onnx.ModelProto, shards: Path) -> None:
    _, facts = calibrated(tiny_graph, Pictures(shards, ("train",)), (64, 96), keep=["fine.0"], percentile=100)
    assert facts == {
        "pictures": "real",
        "data": "kitchens",
        "split": "train",
        "frames": 7,
        "percentile": 100,
        "float": ["normalize", "head.conv", "fine.0"],
    }


def test_it_is_calibrated_on_all_that_it_says(
    tiny_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    class Watched(Reader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            item = super().get_next()
            seen.extend((item or {}).values())
            return item

    monkeypatch.setattr(int8, "Reader", Watched)
    for frames in (9, 11):  # multiples of neither 8 nor each other
        seen.clear()
        _, facts = calibrated(tiny_graph, Pictures(), (32, 64), frames=frames)
        assert facts["frames"] == frames == len({picture.tobytes() for picture in seen})


@pytest.mark.usefixtures("few_frames")
@pytest.mark.parametrize("size", [None, (64, 96)])
def test_export_on_real_and_on_synthetic_pictures(
    tiny: DepthModel, tiny_graph: onnx.ModelProto, shards: Path, size: tuple[int, int] | None
) -> None:
    contents = []
    for data, kind in ((shards, "real"), (None, "synthetic"), (None, "synthetic")):
        graph = onnx.ModelProto()
        graph.CopyFrom(tiny_graph)
        quantized, parity = finish(graph, tiny, size, "int8", data=data)
        assert parity.holds and parity.max > 0
        assert ("kitchens" if data else "synthetic rooms") in parity.pictures
        contents.append(quantized.SerializeToString())
        model = OnnxDepth(contents[-1])
        assert model.metadata["calibration"]["pictures"] == kind
        assert model.metadata["precision"] == "int8" and model.fixed == size
        shape = (3, 3, *(size or (32, 96)))
        assert model.run(np.zeros(shape, np.float32)).shape == (3, 1, *shape[2:])
    assert contents[1] == contents[2] != contents[0]


def test_sensitivity_finds_the_layer_that_suffers(graph: onnx.ModelProto, pictures: list[np.ndarray]) -> None:
    # One huge weight that meets a feature which is never there leaves the others of its channel no steps.
    weights = initializers(graph)
    values = numpy_helper.to_array(weights["coarse.0.weight"]).copy()
    values[:, 0] = 1e3
    weights["coarse.0.weight"].CopyFrom(numpy_helper.from_array(values, "coarse.0.weight"))
    for name in ("fine.0.weight", "fine.0.bias"):
        values = numpy_helper.to_array(weights[name]).copy()
        values[0] = 0
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    # In half light no sum of two 8-bit products leaves 16 bits, in which onnxruntime adds them on AVX2.
    dark = [picture / 2 for picture in pictures]
    found = list(sensitivity(graph, pictures, dark, percentile=100))
    assert [moved.layer for moved in found] == BODY
    worst = max(found)
    assert worst.layer == "coarse.0" and worst.mean > 5 * sorted(found)[-2].mean
