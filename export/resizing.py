"""Resizing inside the file: bytes of any height and width in, depth of that height and width out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import MULTIPLE, infer_shapes, replace_nodes

BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


class Nodes:
    """Nodes in the making, and their constants; every method returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def make(self, output: str, op: str, *inputs: str | np.ndarray | np.generic, **attributes: Any) -> str:
        """Adds a node; an array among its inputs becomes a constant."""
        names = []
        for place, value in enumerate(inputs):
            if not isinstance(value, str):
                self.constants.append(numpy_helper.from_array(np.asarray(value), f"{output}_{place}"))
                value = f"{output}_{place}"
            names.append(value)
        self.nodes.append(helper.make_node(op, names, [output], name=f"resizing/{output}", **attributes))
        return output


def take_bytes(model: onnx.ModelProto, size: tuple[int, int], exact: bool) -> None:
    """Makes a network of float32 (N, 3, h, w) one of uint8 (N, H, W, 3), any H and W.

    The picture is resized as bytes, bilinear and antialiased as Pillow does it; the depth back, plain bilinear.

    Args:
        model: of any precision; changed in place.
        size: (h, w) that the network works at.
        exact: squeeze every picture to ``size``; else keep its aspect, see :func:`fit`.
    """
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in ("image", "depth"):
                    names[index] = f"network_{name}"
    before, after = Nodes(), Nodes()
    batch = before.make("batch_size", "Shape", "image", end=1)
    sides = before.make("own_size", "Shape", "image", start=1, end=3)
    fed: str | np.ndarray = integers(size) if exact else fit(before, sides, size)
    whole = before.make("fed_size", "Concat", batch, integers([3]), fed, axis=0)
    planes = before.make("planes", "Transpose", "image", perm=[0, 3, 1, 2])
    small = before.make("fed_bytes", "Resize", planes, "", "", whole, antialias=1, **BILINEAR)
    small = before.make("fed_float", "Cast", small, to=TensorProto.FLOAT)
    before.make("network_image", "Div", small, np.float32(255))
    whole = after.make("depth_size", "Concat", batch, integers([1]), sides, axis=0)
    after.make("depth", "Resize", "network_depth", "", "", whole, **BILINEAR)
    graph.initializer.extend([*before.constants, *after.constants])
    replace_nodes(model, [*before.nodes, *graph.node, *after.nodes])
    image: list[str | int | None] = ["batch", "height", "width", 3]
    depth: list[str | int | None] = ["batch", 1, "height", "width"]
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, image))
    graph.output.append(helper.make_tensor_value_info("depth", TensorProto.FLOAT, depth))
    infer_shapes(model)


def fit(nodes: Nodes, sides: str, size: tuple[int, int]) -> str:
    """The size that a picture is fed at, as ``run_onnx.fit`` has it, and in its float64: its aspect, about the
    pixels of ``size``, each side a multiple of 32."""
    area = size[0] * size[1]
    longest = max(MULTIPLE, area // MULTIPLE // MULTIPLE * MULTIPLE)
    pixels = nodes.make("own_pixels", "ReduceProd", sides, keepdims=0)
    pixels = nodes.make("own_area", "Cast", pixels, to=TensorProto.DOUBLE)
    scale = nodes.make("scale", "Sqrt", nodes.make("area_ratio", "Div", np.float64(area), pixels))
    scale = nodes.make("scale_to_multiples", "Div", scale, np.float64(MULTIPLE))
    exact = nodes.make("own_sides", "Cast", sides, to=TensorProto.DOUBLE)
    exact = nodes.make("exact_multiples", "Mul", exact, scale)
    multiples = nodes.make("multiples", "Cast", nodes.make("rounded", "Round", exact), to=TensorProto.INT64)
    multiples = nodes.make("at_least_one", "Max", multiples, integers(1))
    return nodes.make(
        "fitted", "Min", nodes.make("fitted_long", "Mul", multiples, integers(MULTIPLE)), integers(longest)
    )


def integers(values: int | Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int64)
