"""Resizing inside the file: bytes of any height and width in, depth of that height and width out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import MULTIPLE, infer_shapes, replace_nodes

FLOAT = TensorProto.FLOAT
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

    The picture is resized bilinear and antialiased as Pillow does it, to bytes again after each side. A matrix does
    that, because some runtimes ignore the attribute ``antialias`` of ``Resize`` without a word. The depth is resized
    back, plain bilinear. Sizes are computed in float32, because not every runtime has float64.

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
    own = before.make(
        "own_sides", "Cast", before.make("own_size", "Shape", "image", start=1, end=3), to=FLOAT
    )
    fed: str | np.ndarray = np.array(size, np.float32) if exact else fit(before, own, size)
    rows, columns = (triangles(before, own, fed, axis) for axis in (0, 1))
    planes = before.make("planes", "Transpose", "image", perm=[0, 3, 1, 2])
    levels = before.make("own_levels", "Cast", planes, to=FLOAT)
    levels = rounded(before, before.make("narrow", "MatMul", levels, columns))
    levels = rounded(before, before.make("small", "MatMul", rows, levels))
    before.make("network_image", "Div", levels, np.float32(255))
    sides = after.make("depth_sides", "Shape", "image", start=1, end=3)
    batch = after.make("batch_size", "Shape", "image", end=1)
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


def fit(nodes: Nodes, own: str, size: tuple[int, int]) -> str:
    """The size (h, w) that a picture is fed at: its aspect, about the pixels of ``size``, multiples of 32.

    As ``run_onnx.fit`` has it, but in float32: a side that lies in the middle between two multiples to seven digits
    may become the other one.

    Args:
        nodes: to add to.
        own: the picture's (H, W), float32.
        size: (h, w).
    """
    area = size[0] * size[1]
    longest = max(MULTIPLE, area // MULTIPLE // MULTIPLE * MULTIPLE)
    ratios = nodes.make("ratios", "Div", own, nodes.make("other_sides", "Gather", own, integers([1, 0])))
    squares = nodes.make("squares", "Mul", ratios, np.float32(area / MULTIPLE**2))
    multiples = nodes.make("multiples", "Round", nodes.make("roots", "Sqrt", squares))
    multiples = nodes.make("at_least_one", "Max", multiples, np.float32(1))
    fitted = nodes.make("fitted_long", "Mul", multiples, np.float32(MULTIPLE))
    return nodes.make("fitted", "Min", fitted, np.float32(longest))


def triangles(nodes: Nodes, own: str, fed: str | np.ndarray, axis: int) -> str:
    """The matrix that resizes one side: for each new place a triangle around it, with the sum 1.

    The triangle reaches to the next pixel of the coarser of both grids, as in Pillow's and PyTorch's bilinear filter.

    Args:
        nodes: to add to.
        own, fed: (H, W) before and after, float32.
        axis: 0 for H, which makes (fed, own), to multiply from the left; 1 for W, which makes (own, fed).
    """

    def make(what: str, op: str, *inputs: str | np.ndarray | np.generic) -> str:
        return nodes.make(f"{'columns' if axis else 'rows'}_{what}", op, *inputs)

    half, one = np.float32(0.5), np.float32(1)
    count = make("own", "Gather", own, integers(axis))
    places = make("fed", "Gather", fed, integers(axis)) if isinstance(fed, str) else fed[axis]
    scale = make("scale", "Div", count, places)
    pixels = make("pixels", "Range", half, count, one)
    centres = make("centres", "Mul", make("places", "Range", half, places, one), scale)
    if axis:
        pixels = make("each_pixel", "Unsqueeze", pixels, integers([1]))
    else:
        centres = make("each_centre", "Unsqueeze", centres, integers([1]))
    apart = make("distance", "Abs", make("apart", "Sub", centres, pixels))
    share = make("share", "Div", apart, make("reach", "Max", scale, one))
    weights = make("weights", "Max", make("left", "Sub", one, share), np.float32(0))
    return make("matrix", "Div", weights, make("sums", "ReduceSum", weights, integers([1 - axis])))


def rounded(nodes: Nodes, values: str) -> str:
    """Halves go up, as in Pillow; ``Round`` would take them to even."""
    return nodes.make(
        f"{values}_rounded", "Floor", nodes.make(f"{values}_half", "Add", values, np.float32(0.5))
    )


def integers(values: int | Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int64)
