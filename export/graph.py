"""Trace a model of the zoo to an ONNX graph, and edit that graph."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch

from depthzoo.models import DepthModel

# What the exporter and its version converter implement. For less, the exporter silently keeps 18.
OPSETS = range(18, 26)
MULTIPLE = 32
TRACED_SHAPE = (2, 3, 64, 96)
# Where the exporter notes the modules that a node comes from, as "['', 'encoder', 'encoder.body', 'conv2d_1']".
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
# Signs of a size that is not matched by construction, and of a BatchNorm that was not folded.
UNWANTED = ("Shape", "BatchNormalization")


class ExportError(ValueError):
    """An export that is impossible or whose result is wrong. The message is one line."""


def trace(model: DepthModel, opset: int = OPSETS[0]) -> onnx.ModelProto:
    """Trace a model to a float32 graph with dynamic batch, height and width.

    Height and width are traced as multiples of 32. All features then match their skips by construction, no Shape
    node is left and every BatchNorm folds into its convolution.

    Args:
        model: on the CPU, in float32 and eval mode, with contiguous weights. Weights in channels_last leave Shape
            nodes.
        opset: ONNX operator set, 18 to 25.

    Raises:
        ExportError: the exporter made another opset, or a graph with unwanted operators.
    """
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    dims |= {2: MULTIPLE * torch.export.Dim("h"), 3: MULTIPLE * torch.export.Dim("w")}
    example = torch.rand(TRACED_SHAPE, generator=torch.Generator().manual_seed(0))
    with quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["image"],
            output_names=["depth"],
            dynamic_shapes=(dims,),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    clean(graph)
    graph.graph.name = model.name
    made = [entry.version for entry in graph.opset_import if entry.domain == ""]
    if made != [opset]:
        raise ExportError(f"asked for opset {opset}, the exporter made {made}")
    counts = Counter(node.op_type for node in graph.graph.node)
    if found := [f"{counts[op]} {op}" for op in UNWANTED if counts[op]]:
        raise ExportError(f"{model.name}: the graph has {', '.join(found)} nodes")
    return graph


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress, warnings and log lines of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def clean(model: onnx.ModelProto) -> None:
    """Name the dynamic dimensions, and remove stack traces with local paths."""
    names = {f"{MULTIPLE}*h": "height", f"{MULTIPLE}*w": "width"}
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    if model.functions:
        raise ExportError("the graph has local functions, which were to be inlined")
    rename_nodes(model)
    for part in [model, graph, *values, *graph.node, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def rename_nodes(model: onnx.ModelProto) -> None:
    """Name nodes and their outputs by module and position, as "encoder.body.0/conv_2", and constants by position.

    The same model then exports to the same bytes: the exporter's own counters depend on earlier exports. Inputs,
    outputs and the model's weights keep their names.
    """
    graph = model.graph
    names = {value.name: value.name for value in graph.output}
    constants = (tensor.name for tensor in graph.initializer if "." not in tensor.name)
    names |= {name: f"constant_{index}" for index, name in enumerate(constants)}
    for index, node in enumerate(graph.node):
        # By its weight: a folded BatchNorm leaves its own module to the convolution.
        weights = [name for name in node.input if name.endswith(".weight")]
        scopes = [entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES]
        module = ast.literal_eval(scopes[0])[-2] if scopes else ""  # the last is the operator
        if weights:
            module = weights[0].removesuffix(".weight")
        node.name = f"{module}/{node.op_type.lower()}_{index}".lstrip("/")
        outputs = [name for name in node.output if name and name not in names]
        names |= {name: f"{node.name}.{place}" if place else node.name for place, name in enumerate(outputs)}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for part in (*graph.initializer, *graph.value_info):
        part.name = names.get(part.name, part.name)


def fix_size(model: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Fix height and width to ``size``. The batch stays dynamic."""
    graph = model.graph
    for value in (graph.input[0], graph.output[0]):
        for dim, side in zip(value.type.tensor_type.shape.dim[2:], size, strict=True):
            dim.dim_value = side
    infer_shapes(model)


def name_batch(model: onnx.ModelProto) -> None:
    """Name the dynamic dimension of a graph of fixed size wherever shape inference gave it another name."""
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "batch"


def infer_shapes(model: onnx.ModelProto) -> None:
    """Recompute the shapes of all tensors from those of the inputs."""
    del model.graph.value_info[:]
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def unblock_head_layout(model: onnx.ModelProto) -> None:
    """Insert a Squeeze and an Unsqueeze after each one-channel head that is resized.

    On a CPU, onnxruntime's convolutions work in blocks of 16 channels (8 on some) and hand blocks to the next node:
    Resize and Sigmoid would compute all 16. A reshape ends the blocked layout and is free elsewhere.
    """
    weights = initializers(model)
    heads = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and weights[node.input[1]].dims[0] == 1
    }
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Resize" and (logits := node.input[0]) in heads:
            plane, apart = f"{logits}_plane", f"{logits}_apart"
            nodes.append(onnx.helper.make_node("Squeeze", [logits, "channel_axis"], [plane], plane))
            nodes.append(onnx.helper.make_node("Unsqueeze", [plane, "channel_axis"], [apart], apart))
            node.input[0] = apart
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "channel_axis")
        model.graph.initializer.append(axis)
        replace_nodes(model, nodes)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph, and drop the initializers that the new ones do not use."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]


def float_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that stay in float32 in every precision: the normalization and the heads.

    A head is a convolution with one output channel and all that follows it up to the next Concat. Rounding there
    would be visible in the depth, and float32 costs next to nothing.
    """
    weights = initializers(model)
    convolved: set[str] = set()  # tensors after the first convolution
    head: set[str] = set()  # tensors of the heads
    names: set[str] = set()
    for node in model.graph.node:
        inputs = [name for name in node.input if name and name not in weights]
        if node.op_type in ("Conv", "ConvTranspose"):
            axis = node.op_type == "ConvTranspose"
            if weights[node.input[1]].dims[axis] == 1:
                head.update(node.output)
                names.add(node.name)
            convolved.update(node.output)
        elif inputs and all(name in head for name in inputs):
            head.update(node.output)
            names.add(node.name)
        elif any(name in convolved for name in inputs):
            convolved.update(node.output)
        else:
            names.add(node.name)
    return names
