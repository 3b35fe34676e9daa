"""Convert a graph to float16 inside and float32 outside, and simulate its rounding on a CPU."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import ExportError, float_nodes, infer_shapes, initializers, replace_nodes

# Inputs that ONNX requires in float32: the regions and scales of Resize.
ALWAYS_FLOAT = {"Resize": (1, 2)}


def to_fp16(model: onnx.ModelProto) -> None:
    """Convert the body of a float32 graph to float16. The image, the heads and the depth stay float32.

    BatchNorms are folded into the convolutions already, in float32: only the products are rounded.

    Raises:
        ExportError: a weight is too large for float16.
    """
    keep, floats = float_nodes(model), initializers(model)
    halves: dict[str, str] = {}  # float16 copies of initializers
    in_half: set[str] = set()  # outputs of the body
    casts: set[str] = set()
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int) -> str:
        output = name + ("_fp16" if to == TensorProto.FLOAT16 else "_fp32")
        if output not in casts:
            casts.add(output)
            nodes.append(helper.make_node("Cast", [name], [output], name=f"cast_{output}", to=to))
        return output

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
    """Return a float16 copy of a tensor."""
    with np.errstate(over="ignore"):
        half = numpy_helper.to_array(tensor).astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{tensor.name} has values beyond 65504, which float16 cannot hold")
    return numpy_helper.from_array(half, name)


def simulate_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds, and overflows, wherever ``model`` stores a float16 tensor.

    onnxruntime's CPU provider computes float16 graphs in float32 throughout and would show none of this.
    """
    simulated = onnx.ModelProto()
    simulated.CopyFrom(model)
    graph = simulated.graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in graph.node:
        outputs = [name for name in node.output if name in half]
        if node.op_type == "Cast" and (outputs or node.input[0] in half):
            node = helper.make_node("Identity", node.input[:1], node.output, name=node.name)
        for name in outputs:
            node.output[list(node.output).index(name)] = f"{name}_exact"
        nodes.append(node)
        for name in outputs:
            for source, target, to in (
                (f"{name}_exact", f"{name}_stored", TensorProto.FLOAT16),
                (f"{name}_stored", name, TensorProto.FLOAT),
            ):
                nodes.append(helper.make_node("Cast", [source], [target], name=f"store_{target}", to=to))
    replace_nodes(simulated, nodes)
    del graph.value_info[:]
    return simulated
