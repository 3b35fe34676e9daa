"""Resize inside the graph: uint8 images of any size in, depth of that size out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import MULTIPLE, infer_shapes, replace_nodes

FLOAT = TensorProto.FLOAT
BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


class Nodes:
    """Collects nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def make(self, output: str, op: str, *inputs: str | np.ndarray | np.generic, **attributes: Any) -> str:
        """Add a node and return the name of its output. An array among the inputs becomes a constant."""
        names = []
        for place, value in enumerate(inputs):
            if not isinstance(value, str):
                self.constants.append(numpy_helper.from_array(np.asarray(value), f"{output}_{place}"))
                value = f"{output}_{place}"
            names.append(value)
        self.nodes.append(helper.make_node(op, names, [output], name=f"resizing/{output}", **attributes))
        return output


def add_uint8_resize(model: onnx.ModelProto, size: tuple[int, int], exact: bool) -> None:
    """Change the input of a graph from float32 (N, 3, h, w) to uint8 (N, H, W, 3) of any H and W.

    The image is resized with Pillow's antialiased bilinear filter, and rounded to integers after each axis. A matrix
    product does that, because some runtimes silently ignore the attribute ``antialias`` of ``Resize``. The depth is
    resized back with plain bilinear interpolation. Sizes are computed in float32: some runtimes lack float64.

    Args:
        model: graph of any precision, changed in place.
        size: working size (h, w) of the network.
        exact: resize every image to ``size``; else keep its aspect ratio, see :func:`fit`.
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
    """Compute the size (h, w) to feed an image at: its aspect ratio, about the area of ``size``, multiples of 32.

    This is ``run_onnx.fit`` in float32: a side halfway between two multiples may round to the other one.

    Args:
        nodes: to add to.
        own: name of the image's (H, W), float32.
        size: working size (h, w).
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
    """Compute the matrix that resizes one axis: a triangle filter around each new position, normalized to sum 1.

    The triangle reaches to the next pixel of the coarser of both grids, as in Pillow's and PyTorch's bilinear filter.

    Args:
        nodes: to add to.
        own, fed: (H, W) before and after, float32.
        axis: 0 for H, of shape (fed, own), to multiply from the left; 1 for W, of shape (own, fed).
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
    """Round half up, as Pillow does. ``Round`` would round half to even."""
    return nodes.make(
        f"{values}_rounded", "Floor", nodes.make(f"{values}_half", "Add", values, np.float32(0.5))
    )


def integers(values: int | Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int64)
