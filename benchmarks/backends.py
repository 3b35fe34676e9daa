"""Backends: the ways to run a network, each prepared as a call to be timed.

``eager``, ``channels_last`` and ``compile`` are PyTorch. ``onnxruntime`` runs an exported file, on CUDA with input and
output on the device; ``onnxruntime_graph`` replays it as a CUDA graph; ``tensorrt`` is onnxruntime's TensorRT provider.
``predictor`` is the whole ``depthzoo.Predictor``, from a JPEG file to metres at its own size. On CUDA, "fp32" is full
float32, "tf32" the same with TF32 products, "fp16" weights and features in half precision; cuDNN searches its
algorithms in PyTorch as it does in onnxruntime. A call returns when its work is done.
"""

import copy
import ctypes
import gc
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import nn

import depthzoo
from benchmarks.peers import nearest
from depthzoo.models import DepthModel
from export.graph import MULTIPLE, quiet
from export.pictures import EXAMPLES
from export.run_onnx import open_session
from export.to_onnx import export_onnx

ALL = ("fp32", "tf32", "fp16")
# The precisions in which each backend runs, by device. TensorRT takes TF32 for float32.
BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "eager": ("fp32",),
        "channels_last": ("fp32",),
        "compile": ("fp32",),
        "onnxruntime": ("fp32", "int8"),
        "predictor": ("fp32",),
    },
    "cuda": {
        "eager": ALL,
        "channels_last": ALL,
        "compile": ALL,
        "onnxruntime": ALL,
        "onnxruntime_graph": ALL,
        "tensorrt": ("tf32", "fp16"),
        "predictor": ("fp32", "tf32"),
    },
}
# Backends and precisions of networks that are not of the zoo.
PEER_BACKENDS = ("eager", "channels_last", "compile", "onnxruntime")
PICTURE = EXAMPLES / "kitchen.jpg"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class CannotRunError(ValueError):
    """A network cannot run with a backend. The message is one line."""


@dataclass(frozen=True)
class Call:
    """A network that has run once with a backend.

    Attributes:
        run: the call, with the input in place.
        cold_ms: milliseconds of the first call: allocation, compilation, search of algorithms.
        load_ms: milliseconds to open an onnxruntime session; None for PyTorch.
        memory: bytes of a later call at its peak, weights included; None if the system does not tell. On a CPU the
            growth of the resident set, on CUDA that of PyTorch's allocations, or of all memory for onnxruntime.
    """

    run: Callable[[], object]
    cold_ms: float
    load_ms: float | None
    memory: int | None


@dataclass(frozen=True)
class Case:
    """What to run: a network, a backend and its input.

    Attributes:
        name: of the network.
        module: on the CPU and in eval mode. A copy of it runs.
        backend, precision: see ``BACKENDS``.
        size: (H, W) of the input, or the working size of ``predictor``.
        batch: number of images.
        device: on which to run.
        data: pictures to calibrate INT8 on, as in ``export_onnx``.
    """

    name: str
    module: nn.Module
    backend: str
    precision: str
    size: tuple[int, int]
    batch: int
    device: torch.device
    data: Path | None = None


def input_size(backend: str, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the nearest size that a network takes. ONNX files and the Predictor of the zoo take multiples of 32."""
    torch_only = backend in ("eager", "channels_last", "compile")
    return nearest(size, multiple if torch_only or multiple > 1 else MULTIPLE)


def prepare(case: Case, folder: Path) -> Call:
    """Prepare a case and run it once. ``folder`` keeps exported files.

    Raises:
        CannotRunError: the backend does not work here, or memory does not suffice.
    """
    gc.collect()
    in_onnxruntime = case.backend in ("onnxruntime", "onnxruntime_graph", "tensorrt")
    before = held(case.device, in_onnxruntime)
    try:
        load_ms = None
        if in_onnxruntime:
            file = onnx_file(case, folder)
            started = time.perf_counter()
            run = onnx_call(case, file)
            load_ms = 1000 * (time.perf_counter() - started)
        elif case.backend == "predictor":
            run = predictor_call(case)
        else:
            run = torch_call(case)
        cold_ms = milliseconds(run)
        peak = peak_memory(run, case.device, in_onnxruntime)
    except Exception as error:  # compilers and onnxruntime have exceptions of their own
        raise CannotRunError(reason(error)) from error
    memory = None if before is None or peak is None else max(0, peak - before)
    return Call(run, cold_ms, load_ms, memory)


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def allow_tf32(precision: str) -> None:
    """Select TF32 or full float32 for PyTorch. Its defaults are TF32 in convolutions only."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def random_images(batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def torch_call(case: Case) -> Callable[[], object]:
    device, images = case.device, random_images(case.batch, case.size).to(case.device)
    network = copy.deepcopy(case.module).to(device)
    if case.precision == "fp16":
        network, images = network.half(), images.half()
    if case.backend == "channels_last":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    forward: Callable[..., object] = network
    if case.backend == "compile":
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        # fullgraph: a graph break is an error, not a silent return to eager mode.
        forward = torch.compile(network, fullgraph=True, dynamic=False, mode=mode)

    @torch.inference_mode()
    def run() -> object:
        allow_tf32(case.precision)
        torch.backends.cudnn.benchmark = True
        result = forward(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return run


def predictor_call(case: Case) -> Callable[[], object]:
    assert isinstance(case.module, DepthModel)
    predictor = depthzoo.Predictor(copy.deepcopy(case.module), case.device, case.size)
    pictures = [PICTURE] * case.batch

    def run() -> object:
        allow_tf32(case.precision)
        return predictor(pictures)

    return run


def onnx_file(case: Case, folder: Path) -> Path:
    """Export a network, once per process: models of the zoo with dynamic size, others with the size of the case."""
    if isinstance(case.module, DepthModel):
        precision = "fp32" if case.precision == "tf32" else case.precision
        path = folder / f"{case.name}_{precision}.onnx"
        if not path.exists():
            export_onnx(case.module, path, precision=precision, data=case.data)
        return path
    path = folder / f"{case.name}_{'x'.join(map(str, (case.batch, *case.size)))}.onnx"
    if not path.exists():
        with quiet():
            program = torch.onnx.export(
                case.module,
                (random_images(case.batch, case.size),),
                input_names=["image"],
                output_names=["depth"],
                verbose=False,
            )
        assert program is not None
        program.save(path, external_data=False)
    return path


def onnx_call(case: Case, path: Path) -> Callable[[], object]:
    """Open a session with input and output on the device (IO binding)."""
    device = case.device
    provider = "tensorrt" if case.backend == "tensorrt" else device.type
    options: dict[str, object] = {}
    if provider != "cpu":
        options["device_id"] = device.index or 0
    if provider == "cuda":
        options["use_tf32"] = int(case.precision == "tf32")
        options["enable_cuda_graph"] = int(case.backend == "onnxruntime_graph")
    session = open_session(path, path.name, provider, torch.get_num_threads(), options)
    place = (device.type, device.index or 0)
    binding = session.io_binding()
    images = random_images(case.batch, case.size).numpy()
    binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, *place))
    if case.backend == "onnxruntime_graph":  # a CUDA graph needs a fixed address
        shape = (case.batch, 1, *case.size)
        depth = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, images.dtype, *place)
        binding.bind_ortvalue_output("depth", depth)
    else:
        binding.bind_output("depth", *place)

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()[0]

    return run


# -- memory -----------------------------------------------------------------------------------------------


def held(device: torch.device, outside_torch: bool) -> int | None:
    """Return the bytes in use now: resident set of the process, PyTorch's allocations, or all memory of the GPU."""
    if device.type == "cpu":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system
        return resident("VmRSS")
    torch.cuda.empty_cache()
    return used(device) if outside_torch else torch.cuda.memory_allocated(device)


def peak_memory(call: Callable[[], object], device: torch.device, outside_torch: bool) -> int | None:
    """Return the largest number of bytes in use during a call. onnxruntime keeps what it has allocated on a GPU."""
    if device.type == "cpu":
        try:
            CLEAR.write_text("5")  # resets the high-water mark of the resident set
        except OSError:
            return None
        call()
        return resident("VmHWM")
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return used(device) if outside_torch else torch.cuda.max_memory_allocated(device)


def used(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def resident(field: str) -> int | None:
    """Return a size in bytes that Linux reports of this process."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
