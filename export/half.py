"""float16 inside, float32 outside; and what a GPU would make of it, computed on a CPU."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import ExportError, float_nodes, infer_shapes, initializers, replace_nodes

# Inputs that ONNX wants in float32 whatever the others are: regions and scales.
ALWAYS_FLOAT = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> None:
    """Turns the body of a float32 graph into float16; the image, the heads and the depth stay float32.

    The BatchNorms are in the convolutions already, folded in float32: only the products are rounded.

    Raises:
        ExportError: for a weight that float16 cannot hold.
    """
    keep, floats = float_nodes(model), initializers(model)
    halves: dict[str, str] = {}
    in_half: set[str] = set()  # what the body makes
    casts: set[str] = set()
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int) -> str:
        made = name + ("_fp16" if to == TensorProto.FLOAT16 else "_fp32")
        if made not in casts:
            casts.add(made)
            nodes.append(helper.make_node("Cast", [name], [made], name=f"cast_{made}", to=to))
        return made

    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.name in keep:
                if name in in_half:
                    node.input[index] = cast(name, TensorProto.FLOAT)
            elif not name or name in in_half or index in ALWAYS_FLOAT.get(node.op_type, ()):
                continue
            elif name not in floats:
                node.input[index] = cast(name, TensorProto.FLOAT16)
            elif floats[name].data_type == TensorProto.FLOAT:
                if name not in halves:
                    halves[name] = f"{name}_fp16"
                    model.graph.initializer.append(rounded(floats[name], halves[name]))
                node.input[index] = halves[name]
        if node.name not in keep:
            in_half.update(node.output)
        nodes.append(node)
    replace_nodes(model, nodes)
    infer_shapes(model)


def rounded(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    with np.errstate(over="ignore"):
        half = numpy_helper.to_array(tensor).astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{tensor.name} has values beyond 65504, which float16 cannot hold")
    return numpy_helper.from_array(half, name)


def as_on_gpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that rounds, and overflows, wherever a graph with float16 inside stores a tensor.

    onnxruntime's CPU provider computes such a graph in float32 throughout and would show none of it.
    """
    simulated = onnx.ModelProto()
    simulated.CopyFrom(model)
    graph = simulated.graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    nodes = []
    for node in graph.node:
        made = [name for name in node.output if name in half]
        if node.op_type == "Cast" and (made or node.input[0] in half):
            node = helper.make_node("Identity", node.input[:1], node.output, name=node.name)
        for name in made:
            node.output[list(node.output).index(name)] = f"{name}_exact"
        nodes.append(node)
        for name in made:
            pairs: Iterable[tuple[str, str, int]] = (
                (f"{name}_exact", f"{name}_stored", TensorProto.FLOAT16),
                (f"{name}_stored", name, TensorProto.FLOAT),
            )
            nodes += [helper.make_node("Cast", [a], [b], name=f"store_{b}", to=to) for a, b, to in pairs]
    replace_nodes(simulated, nodes)
    del graph.value_info[:]
    return simulated
