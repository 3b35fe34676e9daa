"""float16 inside."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from depthzoo.models import DepthModel
from export.graph import ExportError, initializers
from export.half import as_on_gpu, to_half
from export.parity import compare, eager
from export.pictures import Pictures
from export.run_onnx import OnnxDepth, open_session
from export.to_onnx import finish


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    (depth,) = open_session(model.SerializeToString(), "cpu").run(["depth"], {"image": images})
    return np.asarray(depth)


@pytest.fixture
def images() -> np.ndarray:
    pictures = Pictures().batch(2, (64, 96)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pictures, np.float32) / 255


def scale(graph: onnx.ModelProto, name: str, by: float) -> None:
    tensor = initializers(graph)[name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(by), name))


def test_the_body_is_half_and_the_ends_are_not(graph: onnx.ModelProto) -> None:
    to_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    types = {name.removesuffix("_fp16"): t.data_type for name, t in initializers(graph).items()}
    assert types["merge.0.weight"] == types["coarse.0.bias"] == TensorProto.FLOAT16
    assert types["head.conv.weight"] == types["head.conv.bias"] == TensorProto.FLOAT
    values = [graph.graph.input[0], graph.graph.output[0]]
    assert [value.type.tensor_type.elem_type for value in values] == [TensorProto.FLOAT] * 2
    assert [node.op_type for node in graph.graph.node].count("Cast") == 2
    made = {v.name: v.type.tensor_type.elem_type for v in graph.graph.value_info}
    for node in graph.graph.node:
        if node.op_type in ("Concat", "Relu"):
            assert made[node.output[0]] == TensorProto.FLOAT16


def test_a_tensor_that_both_parts_use_is_kept_twice(graph: onnx.ModelProto, images: np.ndarray) -> None:
    bias = initializers(graph)["head.conv.bias"]
    shared = np.full(4, 0.1, np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(shared, "shared"))
    for node in graph.graph.node:
        if "merge.0.weight" in node.input:
            node.input[2] = "shared"
        if "head.conv.bias" in node.input:
            node.input[2] = "first"
    first = onnx.helper.make_node("ReduceMax", ["shared"], ["first"], name="first", keepdims=1)
    graph.graph.node.insert(0, first)
    assert bias.dims == [1]
    before = run(graph, images)
    to_half(graph)
    assert {"shared", "shared_fp16"} <= initializers(graph).keys()
    assert np.abs(run(graph, images) - before).max() < 0.02


def test_the_file_is_held_to_what_a_gpu_would_make_of_it(graph: onnx.ModelProto, images: np.ndarray) -> None:
    exact = run(graph, images)
    to_half(graph)
    on_cpu, on_gpu = run(graph, images), run(as_on_gpu(graph), images)
    assert 0 < np.abs(on_gpu - exact).max() < 0.02
    assert not np.array_equal(on_cpu, on_gpu)


def test_what_overflows_on_a_gpu_is_not_exported(
    tiny: DepthModel, graph: onnx.ModelProto, images: np.ndarray
) -> None:
    # Features of some 1e5 between layers that undo each other: nothing in float32, infinity in float16.
    for name, by in (("fine.0.weight", 100), ("fine.0.bias", 100), ("coarse.0.weight", 2e3)):
        scale(graph, name, by)
    scale(graph, "coarse.0.bias", 2e5)
    weight = initializers(graph)["merge.0.weight"]
    values = numpy_helper.to_array(weight) / np.repeat(np.float32([2e5, 100]), 4)[:, None, None]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    assert finish(copy, tiny)[1].holds
    copy.CopyFrom(graph)
    to_half(copy)
    assert (
        compare(eager(tiny, (64, 96)), [lambda x: run(copy, x)], ((2, 3, 64, 96),), Pictures(), "fp16").max
        < 1
    )
    with pytest.raises(ExportError, match="differs from PyTorch"):
        finish(graph, tiny, precision="fp16")


def test_a_weight_that_float16_cannot_hold_is_refused(graph: onnx.ModelProto) -> None:
    scale(graph, "merge.0.weight", 1e6)
    with pytest.raises(ExportError, match="merge.0.weight has values beyond 65504"):
        to_half(graph)


@pytest.mark.parametrize("size", [None, (64, 96)])
def test_export(
    tiny: DepthModel, tiny_graph: onnx.ModelProto, graph: onnx.ModelProto, size: tuple[int, int] | None
) -> None:
    half, parity = finish(graph, tiny, size, "fp16")
    assert parity.holds and parity.max > 0
    session = OnnxDepth(half.SerializeToString())
    assert session.metadata["precision"] == "fp16"
    assert session.metadata["verified_on"].startswith("CPU-checked")
    assert session.fixed == size
    again = onnx.ModelProto()
    again.CopyFrom(tiny_graph)
    assert finish(again, tiny, size, "fp16")[0].SerializeToString() == half.SerializeToString()
