"""From a model of the zoo to its ONNX graph, and what every pass over that graph asks of it."""

import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from depthzoo.models import DepthModel

# What the exporter implements and what its version converter reaches; it would quietly keep 18 for less.
OPSETS = range(18, 26)
MULTIPLE = 32
TRACED_SHAPE = (2, 3, 64, 96)
# Signs of a size that is not matched by construction, and of a BatchNorm that did not fold.
UNWANTED = ("Shape", "BatchNormalization")


class ExportError(ValueError):
    """An export that cannot be made or that must not be kept; the message is one line."""


def trace(model: DepthModel, opset: int = OPSETS[0]) -> onnx.ModelProto:
    """The float32 graph of any batch, height and width, without a trace of where it was made.

    Height and width are traced as 32 times something: all features then match their skips by construction,
    no Shape node is left and every BatchNorm folds into its convolution.

    Args:
        model: on the CPU, in float32 and eval mode, its weights contiguous: others are traced with Shape nodes.
        opset: ONNX operator set, 18 to 25.

    Raises:
        ExportError: the exporter made another opset, or a graph with operators that should not be there.
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
    got = [entry.version for entry in graph.opset_import if entry.domain == ""]
    if got != [opset]:
        raise ExportError(f"asked for opset {opset}, the exporter made {got}")
    counts = Counter(node.op_type for node in graph.graph.node)
    if left := [op for op in UNWANTED if counts[op]]:
        raise ExportError(
            f"{model.name}: the graph has {', '.join(f'{counts[op]} {op}' for op in left)} nodes"
        )
    return graph


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress, warnings and log lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def clean(model: onnx.ModelProto) -> None:
    """Names the open dimensions; drops what the exporter noted of its sources, local paths among it."""
    names = {f"{MULTIPLE}*h": "height", f"{MULTIPLE}*w": "width"}
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    for part in [model, graph, *values, *graph.node, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if model.functions:
        raise ExportError("the graph has local functions, which were to be inlined")
    number(model)


def number(model: onnx.ModelProto) -> None:
    """Names nodes, what they make and constants by their place; the exporter's counters depend on what it did before.

    Inputs, outputs and the model's own weights keep their names.
    """
    graph = model.graph
    names = {value.name: value.name for value in graph.output}
    constants = (tensor.name for tensor in graph.initializer if "." not in tensor.name)
    names |= {name: f"constant_{index}" for index, name in enumerate(constants)}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
        outputs = [name for name in node.output if name and name not in names]
        names |= {name: f"{node.name}.{place}" if place else node.name for place, name in enumerate(outputs)}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for part in (*graph.initializer, *graph.value_info):
        part.name = names.get(part.name, part.name)


def fix_size(model: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Makes a graph of open size one of ``size`` (H, W); the batch stays open."""
    graph = model.graph
    for value in (graph.input[0], graph.output[0]):
        for dim, side in zip(value.type.tensor_type.shape.dim[2:], size, strict=True):
            dim.dim_value = side
    infer_shapes(model)


def infer_shapes(model: onnx.ModelProto) -> None:
    """Writes the shapes of all tensors anew, from those of the inputs."""
    del model.graph.value_info[:]
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def part_logits(model: onnx.ModelProto) -> None:
    """Puts a Squeeze and an Unsqueeze behind each head of one channel that is then resized.

    onnxruntime's convolutions on a CPU work in blocks of 16 channels (8 on some) and hand blocks to what follows: the
    resizing and the sigmoid would compute all 16. A reshaping ends the blocks; elsewhere it costs nothing.
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
    return {tensor.name: tensor for tensor in model.graph.initializer}


def layers(model: onnx.ModelProto) -> dict[str, str]:
    """The convolutions: the module's path in the PyTorch model, and the name of the node."""
    weights = {name for name in initializers(model) if name.endswith(".weight")}
    return {
        node.input[1].removesuffix(".weight"): node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights
    }


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Makes ``nodes`` the graph's, in their order, and drops the initialisers that they do not use."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]


def float_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that stay in float32 in every precision: the normalisation and the heads.

    A head is a convolution with one output channel and what follows it, up to the next Concat: rounding there
    would be seen in the depth itself, and costs next to nothing to leave out.
    """
    weights = initializers(model)
    convolved: set[str] = set()
    head: set[str] = set()
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


def check_path(path: Path) -> None:
    """Raises ExportError for what cannot be written, before anything slow starts."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"{path}: the folder {path.parent} is not writable")


def write(content: bytes, path: Path) -> None:
    """Writes aside, then renames: no other process ever sees half a file, and nothing stays on failure."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
