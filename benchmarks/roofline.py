"""What a device can do at most, and the time that each model takes there at least.

    python -m benchmarks.roofline [--models NAME...] [--size HxW] [--device cuda]

The roofline bound of a network is the longer of two times: its operations at the rate of the fastest matrix product,
its bytes at the rate of a large copy, both measured on the same device. The bound divided by the measured time is the
roofline efficiency. Winograd convolutions need fewer operations than are counted, so they can exceed 100%.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import depthzoo
from depthzoo.prediction import select_device
from train.arguments import command, parse_size

# Sides of the matrices and bytes of the copy. On a GPU, enough to fill it and its caches.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
COPY = {"cpu": 2**28, "cuda": 2**31}
REPEATS = 20
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# PyTorch before 2.15 has no formula for attention on a CPU. It is that of attention on a GPU.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
GPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention
FORMULAS = {CPU_ATTENTION: flop_registry[GPU_ATTENTION], **flop_registry}


# -- cost -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """The work of one call.

    Attributes:
        parameters: of the network.
        gflop: 10^9 operations, a multiply-add counted as two.
        elements: read and written by all convolutions and matrix products: weights, inputs and outputs, each once.
            All operators between them are taken to be fused into a neighbor.
    """

    parameters: int
    gflop: float
    elements: int


class Traffic(TorchDispatchMode):
    """Counts the elements of the tensors of all operators that have a FLOP formula."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in FORMULAS:
            tensors = tree_leaves((args, dict(kwargs or {}), result))
            self.elements += sum(each.numel() for each in tensors if isinstance(each, Tensor))
        return result


def count_cost(network: nn.Module | Callable[[], nn.Module], size: tuple[int, int], batch: int = 1) -> Cost:
    """Count the work of one call on tensors without data.

    Args:
        network: takes (N, 3, H, W); on the CPU and in eval mode. Or a function that builds it, also without data.
        size: (H, W).
        batch: number of images.
    """
    # no_grad, not inference_mode, so that composite operators decompose into those that have a formula.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        module = network if isinstance(network, nn.Module) else network()
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            flops.flop_registry = FORMULAS
            module(torch.empty(batch, 3, *size))
    parameters = sum(each.numel() for each in module.parameters())
    return Cost(parameters, flops.get_total_flops() / 1e9, traffic.elements)


def build_untrained(name: str) -> nn.Module:
    return depthzoo.create_model(name, weights=None).eval()


# -- peak -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """Rates of a device: 10^9 operations a second by precision, and 10^9 bytes a second of a copy."""

    gflops: Mapping[str, float]
    gbytes: float

    def bound(self, cost: Cost, precision: str) -> float | None:
        """Return the milliseconds that ``cost`` takes at least; None for a precision that was not measured."""
        if precision not in self.gflops:
            return None
        nbytes = cost.elements * BYTES[precision]
        return 1000 * max(cost.gflop / self.gflops[precision], nbytes / 1e9 / self.gbytes)


def measure_peak(device: torch.device) -> Peak:
    """Time matrix products and a copy. The fastest product of each precision counts."""
    gflops: dict[str, float] = {}
    for side in SIDES[device.type]:
        for precision, multiply in products(device, side):
            rate = 2 * side**3 / median_seconds(multiply, device) / 1e9
            gflops[precision] = max(round(rate, 1), gflops.get(precision, 0.0))
    source = torch.ones(COPY[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device)
    return Peak(gflops, round(2 * source.nbytes / seconds / 1e9, 1))


def products(device: torch.device, side: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield matrix products by precision. On a CPU, PyTorch and onnxruntime differ in which one reaches the peak."""
    for precision in ("fp32",) if device.type == "cpu" else DTYPES:
        a, b = torch.randn(2, side, side, device=device).to(DTYPES[precision])

        def multiply(a: Tensor = a, b: Tensor = b, tf32: bool = precision == "tf32") -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.mm(a, b)

        yield precision, multiply
    if device.type == "cpu":
        for precision, dtypes in (("fp32", (np.float32, np.float32)), ("int8", (np.uint8, np.int8))):
            x, y = (np.random.default_rng(0).integers(0, 100, (side, side)).astype(dtype) for dtype in dtypes)
            yield precision, onnx_product(x, y)


def onnx_product(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """Return a call that multiplies two matrices in onnxruntime: float32, or uint8 by int8 into int32."""

    def value(name: str, dtype: Any) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), a.shape
        )

    integer = a.dtype != np.float32
    node = onnx.helper.make_node("MatMulInteger" if integer else "MatMul", ["a", "b"], ["c"])
    output = value("c", np.int32 if integer else np.float32)
    graph = onnx.helper.make_graph(
        [node], "product", [value("a", a.dtype)], [output], [onnx.numpy_helper.from_array(b, "b")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": a})


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the median duration of a call, after one that does not count."""
    call()
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# -- the command ------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=summary)
    main.add_argument("--models", nargs="+", metavar="NAME", default=depthzoo.list_models())
    main.add_argument("--size", type=parse_size, default=(480, 640), metavar="HxW")
    main.add_argument("--device", metavar="cpu|cuda")
    return main


def run(args: argparse.Namespace) -> int:
    device = select_device(args.device)
    peak = measure_peak(device)
    for precision, rate in peak.gflops.items():
        print(f"{precision:<5} {rate:>10,.0f} GFLOP/s")
    print(f"copy  {peak.gbytes:>10,.0f} GB/s\n")
    print(f"{'{}x{}, ms at least'.format(*args.size):<22}" + "".join(f"{key:>9}" for key in peak.gflops))
    for name in args.models:
        cost = count_cost(functools.partial(build_untrained, name), args.size)
        bounds = "".join(f"{peak.bound(cost, precision):>9.2f}" for precision in peak.gflops)
        print(f"{name:<22}{bounds}   {cost.parameters / 1e6:.1f}M parameters, {cost.gflop:.1f} GFLOP")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
