"""uint8 images of any size in, depth of that size out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from depthzoo.prediction import working_size
from export.graph import MULTIPLE
from export.run_onnx import OnnxDepth
from export.uint8_resize import FLOAT, Nodes, fit, triangles
from tests.export.noise import noise


@pytest.fixture(scope="module")
def dynamic_file(export_tiny: Callable[..., tuple[Path, Any]]) -> Path:
    return export_tiny(uint8=True)[0]


@pytest.fixture(scope="module")
def dynamic(dynamic_file: Path) -> OnnxDepth:
    return OnnxDepth(dynamic_file)


def test_the_contract(dynamic: OnnxDepth, uint8_file: Path) -> None:
    for model, size in ((dynamic, [480, 640]), (OnnxDepth(uint8_file), [64, 96])):
        metadata = model.metadata
        assert metadata["input"] == {
            "name": "image",
            "type": "uint8",
            "layout": "NHWC",
            "colour": "RGB",
            "range": [0, 255],
            "multiple_of": 1,
        }
        assert metadata["output"] == {"name": "depth", "type": "float32", "layout": "NCHW"}
        assert metadata["size"] == size
        (image,), (depth,) = model.session.get_inputs(), model.session.get_outputs()
        assert image.shape == ["batch", "height", "width", 3]
        assert depth.shape == ["batch", 1, "height", "width"]
    assert "aspect ratio kept" in dynamic.metadata["resizing"] and "to size" in metadata["resizing"]


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


def started(nodes: Nodes, outputs: list[str]) -> onnxruntime.InferenceSession:
    """What computes ``outputs`` of ``sides``."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes.nodes,
        "sizes",
        [helper.make_tensor_value_info("sides", onnx.TensorProto.INT64, [2])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        nodes.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(192, 256), (480, 640), (32, 32), (224, 992)])
def test_the_working_size_is_the_predictors(size: tuple[int, int]) -> None:
    nodes = Nodes()
    fitted = fit(nodes, nodes.make("own", "Cast", "sides", to=FLOAT), size)
    session = started(nodes, [fitted])
    draws = np.exp(np.random.default_rng(0).uniform(0, np.log(8000), (2000, 2))).round().astype(np.int64)
    for height, width in [*draws, (480, 640), (1, 100_000)]:
        (got,) = session.run(None, {"sides": np.array([height, width])})
        assert tuple(got) == working_size(int(height), int(width), size)
    # All of 5.25 million shapes from 32 to 2323 pixels agree but 12 (192x256) and 24 (480x640): a side of theirs is
    # exactly half-way between two multiples, so that either is as near to the picture's aspect.
    for height, width in [(1029, 448), (896, 2058), (1728, 1089)]:
        (got,) = session.run(None, {"sides": np.array([height, width])})
        assert np.abs(got - working_size(height, width, size)).max() <= MULTIPLE


def test_nothing_that_other_runtimes_lack(dynamic_file: Path, uint8_file: Path) -> None:
    for file in (dynamic_file, uint8_file):
        model = onnx.shape_inference.infer_shapes(onnx.load(file))
        # OpenVINO ignores antialias; WebGPU has no float64.
        assert not [a for node in model.graph.node for a in node.attribute if a.name == "antialias" and a.i]
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        types = {value.type.tensor_type.elem_type for value in values}
        types |= {tensor.data_type for tensor in model.graph.initializer}
        types |= {a.i for node in model.graph.node for a in node.attribute if a.name == "to"}
        assert onnx.TensorProto.FLOAT in types and onnx.TensorProto.DOUBLE not in types


@pytest.mark.parametrize("sides", [(97, 131), (480, 640), (1, 500), (33, 20)])
def test_the_matrices_resize_as_pillow_does(sides: tuple[int, int]) -> None:
    size, nodes = (64, 96), Nodes()
    own = nodes.make("own", "Cast", "sides", to=FLOAT)
    matrices = [triangles(nodes, own, np.array(size, np.float32), axis) for axis in (0, 1)]
    rows, columns = started(nodes, matrices).run(None, {"sides": np.array(sides)})
    assert rows.shape == (64, sides[0]) and columns.shape == (sides[1], 96)
    levels = np.random.default_rng(0).random(sides, np.float32)
    expected = np.asarray(Image.fromarray(levels).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(rows @ levels @ columns, expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_in_other_precisions(export_tiny: Callable[..., tuple[Path, Any]], precision: str) -> None:
    path, parity = export_tiny(size=(64, 96), precision=precision, uint8=True)
    model = OnnxDepth(path)
    assert parity.holds and model.uint8 and model.metadata["precision"] == precision
    assert model.run(np.zeros((2, 33, 47, 3), np.uint8)).shape == (2, 1, 33, 47)
