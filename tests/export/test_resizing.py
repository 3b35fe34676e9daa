"""Bytes of any size in, depth of that size out."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from depthzoo.models import DepthModel
from export import run_onnx
from export.graph import MULTIPLE
from export.resizing import Nodes, fit
from export.run_onnx import OnnxDepth
from export.to_onnx import finish


@pytest.fixture(scope="module")
def dynamic(tiny: DepthModel, tiny_graph: onnx.ModelProto) -> OnnxDepth:
    copy = onnx.ModelProto()
    copy.CopyFrom(tiny_graph)
    graph, parity = finish(copy, tiny, uint8=True)
    assert parity.holds
    return OnnxDepth(graph.SerializeToString())


def noise(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height * width).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_the_contract(dynamic: OnnxDepth, uint8_file: Path) -> None:
    for model, size in ((dynamic, [480, 640]), (OnnxDepth(uint8_file), [64, 96])):
        facts = model.metadata
        assert facts["input"] == {
            "name": "image",
            "type": "uint8",
            "layout": "NHWC",
            "colour": "RGB",
            "range": [0, 255],
            "multiple_of": 1,
        }
        assert facts["output"] == {"name": "depth", "type": "float32", "layout": "NCHW"}
        assert facts["size"] == size
        (image,), (depth,) = model.session.get_inputs(), model.session.get_outputs()
        assert image.shape == ["batch", "height", "width", 3] and depth.shape == [
            "batch",
            1,
            "height",
            "width",
        ]
    assert "aspect kept" in dynamic.metadata["resizing"] and "squeezed" in facts["resizing"]


@pytest.mark.parametrize("size", [(1, 1), (97, 131), (480, 640), (31, 500), (600, 40)])
def test_the_same_as_resizing_outside(dynamic: OnnxDepth, tiny_file: Path, size: tuple[int, int]) -> None:
    outside = OnnxDepth(tiny_file).predict(noise(*size))
    inside = dynamic.predict(noise(*size))
    assert inside.shape == size
    # One grey level where the two round differently; the depth of this network spans metres.
    assert np.abs(inside - outside).max() < 2e-2 and np.abs(inside - outside).mean() < 1e-3


def test_a_batch_is_its_pictures(dynamic: OnnxDepth) -> None:
    pictures = np.stack([np.asarray(noise(50, 70)), np.asarray(noise(50, 70))[::-1]])
    alone = [dynamic.run(pictures[index : index + 1]) for index in range(2)]
    # A batch may be computed in another order than a picture alone.
    np.testing.assert_allclose(dynamic.run(pictures), np.concatenate(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(192, 256), (480, 640), (32, 32), (224, 992)])
def test_the_working_size_is_that_of_run_onnx(size: tuple[int, int]) -> None:
    nodes = Nodes()
    fitted = fit(nodes, "sides", size)
    helper = onnx.helper
    graph = helper.make_graph(
        nodes.nodes,
        "fit",
        [helper.make_tensor_value_info("sides", onnx.TensorProto.INT64, [2])],
        [helper.make_tensor_value_info(fitted, onnx.TensorProto.INT64, [2])],
        nodes.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    draws = np.exp(np.random.default_rng(0).uniform(0, np.log(8000), (2000, 2))).round().astype(np.int64)
    for height, width in [*draws, np.array([480, 640]), np.array([1, 100_000])]:
        (got,) = session.run(None, {"sides": np.array([height, width])})
        assert tuple(got) == run_onnx.fit(int(height), int(width), size, MULTIPLE)


def test_the_same_bytes_again(tiny: DepthModel, uint8_file: Path, graph: onnx.ModelProto) -> None:
    again, _ = finish(graph, tiny, (64, 96), uint8=True)
    assert again.SerializeToString() == uint8_file.read_bytes()


@pytest.mark.usefixtures("few_frames")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_in_other_precisions(tiny: DepthModel, graph: onnx.ModelProto, precision: str) -> None:
    graph, parity = finish(graph, tiny, (64, 96), precision, uint8=True)
    model = OnnxDepth(graph.SerializeToString())
    assert parity.holds
    assert model.uint8 and model.metadata["precision"] == precision
    assert model.run(np.zeros((2, 33, 47, 3), np.uint8)).shape == (2, 1, 33, 47)
