"""What the machine can do at most, measured beside the figures that are held against it.

The floor of a network is the longer of two times: its operations at the rate of a matrix product, its bytes at the rate
of a large copy. No way of running it is much faster than that; how near one comes says what is left to gain.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

# Rows and columns of the matrices; bytes of the copy. On a GPU, enough to fill it and its caches.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
COPY = {"cpu": 2**28, "cuda": 2**31}
REPEATS = 20
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ceiling:
    """Rates of one device.

    Attributes:
        gflops: 10^9 operations a second of the fastest matrix product, by precision.
        gbytes: 10^9 bytes a second, read and written, of a copy.
        library: what made the fastest product, by precision.
    """

    gflops: dict[str, float]
    gbytes: float
    library: dict[str, str]

    def floor(self, gflop: float, nbytes: float, precision: str) -> float | None:
        """Milliseconds that so many operations and bytes take at least; None where the precision was not measured."""
        rate = self.gflops.get(precision)
        return None if rate is None else 1000 * max(gflop / rate, nbytes / 1e9 / self.gbytes)

    def facts(self) -> dict[str, Any]:
        """What is stored."""
        return asdict(self)


def measure_ceiling(device: torch.device, repeats: int = REPEATS) -> Ceiling:
    """Times matrix products and a copy, each several times, and takes the quickest.

    On a CPU the product is also numpy's and onnxruntime's: which library reaches the processor's peak differs between
    makers. In int8 it is onnxruntime's, of uint8 by int8.
    """
    gflops: dict[str, float] = {}
    library: dict[str, str] = {}
    for precision in ("fp32", "int8") if device.type == "cpu" else PRECISIONS:
        for name, product in products(device, precision):
            for side in SIDES[device.type]:
                rate = 2 * side**3 / quickest(product(side), device, repeats) / 1e9
                if rate > gflops.get(precision, 0.0):
                    gflops[precision], library[precision] = round(rate, 1), name
    source = torch.ones(COPY[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = quickest(lambda: target.copy_(source), device, repeats)
    return Ceiling(gflops, round(2 * source.nbytes / seconds / 1e9, 1), library)


def products(
    device: torch.device, precision: str
) -> Iterator[tuple[str, Callable[[int], Callable[[], object]]]]:
    """Ways to multiply two random square matrices: a name, and what makes the call for a side's length."""

    def by_torch(side: int) -> Callable[[], object]:
        a, b = torch.randn(2, side, side, device=device).to(PRECISIONS[precision])

        def multiply() -> None:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            torch.mm(a, b)
            torch.backends.cuda.matmul.allow_tf32 = before

        return multiply

    def by_numpy(side: int) -> Callable[[], object]:
        a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
        return lambda: a @ b

    def by_onnxruntime(side: int) -> Callable[[], object]:
        a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
        if precision == "int8":
            a, b = (100 * a).astype(np.int8).view(np.uint8), (100 * b).astype(np.int8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        model = matrix_product(a, b).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"a": a})

    if precision != "int8":
        yield "torch", by_torch
    if device.type == "cpu" and precision == "fp32":
        yield "numpy", by_numpy
    if device.type == "cpu":
        yield "onnxruntime", by_onnxruntime


def matrix_product(a: np.ndarray, b: np.ndarray) -> onnx.ModelProto:
    """A graph that multiplies its input, like ``a``, by ``b``: float32, or uint8 by int8 into int32."""

    def tensor(name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return onnx.helper.make_tensor_value_info(name, kind, a.shape)

    whole = a.dtype != np.float32
    node = onnx.helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])
    result = tensor("c", np.dtype(np.int32) if whole else a.dtype)
    weight = onnx.numpy_helper.from_array(b, "b")
    graph = onnx.helper.make_graph([node], "product", [tensor("a", a.dtype)], [result], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def quickest(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the quickest call; on a GPU by events around it."""
    call()
    if device.type == "cpu":
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return min(seconds)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
    for start, end in zip(starts, ends, strict=True):
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return min(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / 1000
