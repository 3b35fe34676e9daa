"""Each way of running a network, as a call to be timed: PyTorch's own, and an exported file's in onnxruntime.

On CUDA, torch runs in full float32, in TF32 and under autocast to float16, with cuDNN choosing its algorithms by trial;
``compile`` replays a CUDA graph there (mode "reduce-overhead"). onnxruntime keeps input and output on the device.
A call returns when its work is done.
"""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from benchmarks.measure.memory import held, peak
from benchmarks.measure.peers import nearest
from export.graph import MULTIPLE
from export.latency import random_images
from export.run_onnx import OnnxDepth, OnnxError, milliseconds

TORCH = ("eager", "channels_last", "compile")
# Of an exported file: onnxruntime's provider by device, and its options.
FILES: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "onnxruntime": ({"cpu": "cpu", "cuda": "cuda"}, {}),
    "onnxruntime cuda graph": ({"cuda": "cuda"}, {"enable_cuda_graph": 1}),
    "tensorrt": ({"cuda": "tensorrt"}, {}),
}
BACKENDS = (*TORCH, *FILES)
# In which each can run. TensorRT takes TF32 for float32.
TORCH_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "fp16")}
FILE_PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")}
PRECISIONS = ("fp32", "tf32", "fp16", "int8")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc")

Result = TypeVar("Result")


class CannotRunError(ValueError):
    """Why something cannot be timed here, in one line.

    Attributes:
        everywhere: the reason holds for the backend as such, whatever the network.
    """

    def __init__(self, reason: str, everywhere: bool = False) -> None:
        super().__init__(reason)
        self.everywhere = everywhere


@dataclass(frozen=True)
class Prepared:
    """A network that has run once in one way.

    Attributes:
        run: the call, with the input in place.
        batch: pictures of one call; fewer than asked for where memory did not suffice.
        first: milliseconds of the first call.
        ready: milliseconds until it could be called, where that takes time: a session (on a GPU with a run of an
            empty picture); None in PyTorch, where compilation is part of the first call.
        peak_memory: bytes of a later call with the weights in it, None where it cannot be told. On the CPU the growth
            of the resident set (after ``compile`` with what the compiler left in it), on CUDA of PyTorch's
            allocations, or for onnxruntime of what is in use on the device.
    """

    run: Callable[[], object]
    batch: int
    first: float
    ready: float | None
    peak_memory: int | None


def precisions_of(backend: str, device: str) -> tuple[str, ...]:
    """In which precisions a backend runs on a device; in none, if it does not run there."""
    if backend in TORCH:
        return TORCH_PRECISIONS[device]
    if device not in FILES[backend][0]:
        return ()
    return ("tf32", "fp16") if backend == "tensorrt" else FILE_PRECISIONS[device]


def input_size(backend: str, size: tuple[int, int]) -> tuple[int, int]:
    """The input size nearest to ``size`` that a backend takes: files of the zoo want multiples of 32."""
    return size if backend in TORCH else nearest(size, MULTIPLE)


def ways(
    backends: Sequence[str], precisions: Sequence[str], device: str, missing: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """(backend, precision) of all that was asked for and can run on the device; the rest goes to ``missing``."""
    for backend in backends:
        possible = precisions_of(backend, device)
        if not possible:
            missing[backend] = f"needs CUDA; this run is on {device}"
        for precision in precisions:
            if precision in possible:
                yield backend, precision
    running = [each for each in backends if precisions_of(each, device)]
    for precision in precisions if running else ():
        if not any(precision in precisions_of(each, device) for each in running):
            missing[precision] = f"not in {', '.join(running)} on {device}"


def prepare(
    network: nn.Module,
    backend: str,
    precision: str,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
    file: Callable[[str], Path] | None = None,
) -> Prepared:
    """Makes a network ready in one way and runs it; at half the batch as often as memory does not suffice.

    Args:
        network: in eval mode on the CPU; a copy of it runs.
        backend, precision: one of :func:`ways`.
        size: (H, W) of the input.
        batch: pictures at once.
        device: where.
        file: gives the network's ONNX file in "fp32", "fp16" or "int8"; None where there is none.

    Raises:
        CannotRunError: with the reason.
    """

    def attempt(fewer: int) -> Prepared:
        if backend in TORCH:
            return in_torch(network, backend, precision, size, fewer, device)
        if file is None:
            raise CannotRunError("no ONNX file of it")
        stored = "fp32" if precision == "tf32" else precision
        return in_onnxruntime(file(stored), backend, precision, size, fewer, device)

    return at_most(attempt, batch, device)


def at_most(attempt: Callable[[int], Result], batch: int, device: torch.device) -> Result:
    """What ``attempt`` makes of the batch, or of the largest half, quarter, ... of it that fits into memory.

    Raises:
        CannotRunError: not even one picture fits.
    """
    while True:
        try:
            return attempt(batch)
        except (RuntimeError, MemoryError, OnnxError) as error:
            if not out_of_memory(error):
                raise
        # Outside of the handler, or the error's frames would hold what is to be freed.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if batch == 1:
            raise CannotRunError("out of memory with one picture")
        batch //= 2


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, in one of the libraries' ways."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def in_torch(
    network: nn.Module,
    backend: str,
    precision: str,
    size: tuple[int, int],
    batch: int,
    device: torch.device,
) -> Prepared:
    """In PyTorch: eager, with features in NHWC order, or compiled."""
    before = held(device)
    network = copy.deepcopy(network).to(device)
    images = torch.from_numpy(random_images(batch, size)).to(device)
    if backend == "channels_last":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    forward: Callable[..., object] = network
    if backend == "compile":
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        # What cannot be compiled as a whole, for this very shape, is an error and no silent eager mode.
        forward = torch.compile(network, fullgraph=True, dynamic=False, mode=mode)

    def run() -> object:
        half = torch.autocast(device.type, torch.float16) if precision == "fp16" else nullcontext()
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        with torch.inference_mode(), half:
            result = forward(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    try:
        first = milliseconds(run)
    except Exception as error:
        # The compiler's errors share no base of their own.
        if backend != "compile" or out_of_memory(error):
            raise
        reason = last_line(error)
        raise CannotRunError(f"torch.compile: {reason}", "compiler" in reason.lower()) from error
    return Prepared(run, batch, first, None, grown(peak(run, device), before))


def in_onnxruntime(
    path: Path, backend: str, precision: str, size: tuple[int, int], batch: int, device: torch.device
) -> Prepared:
    """An exported file by one of onnxruntime's providers, which takes all of its operators or is refused."""
    providers, options = FILES[backend]
    provider = providers[device.type]
    options = dict(options)
    if provider == "cuda":
        options["use_tf32"] = int(precision == "tf32")
    if provider != "cpu":
        options["device_id"] = device.index or 0
    before = held(device, outside_torch=True)
    started = time.perf_counter()
    try:
        session = OnnxDepth(path, provider, size, torch.get_num_threads(), options)
        ready = 1000 * (time.perf_counter() - started)
        run = session.bind(random_images(batch, size)).run
        first = milliseconds(run)
    except OnnxError as error:
        if out_of_memory(error):
            raise
        useless = "does not work here" in str(error) or "this onnxruntime has no" in str(error)
        raise CannotRunError(str(error).replace(str(path), path.name), useless) from error
    return Prepared(run, batch, first, ready, grown(peak(run, device, outside_torch=True), before))


def grown(most: int | None, before: int | None) -> int | None:
    """The difference, where both are known."""
    return None if most is None or before is None else max(0, most - before)


def last_line(error: BaseException) -> str:
    """The line of an error that says what is wrong: the first of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
