"""How fast exported files run on the providers that work here, against eager PyTorch in the same run.

    python export/latency.py unet_resnet50.onnx unet_resnet50_int8.onnx --size 480x640

The files are of one model. Each is timed on the CPU, on CUDA (input and output kept on the device, without and
with a CUDA graph) and on TensorRT, where they work, in turn with the model in eager PyTorch on the same device.
The table is printed, and stored beside the first file as NAME.benchmark.json.
"""

import copy
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    if not __package__:  # run as a file: only depthzoo is installed, the rest is found from the checkout
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import numpy as np
    import onnxruntime
    import torch

    import depthzoo
    from depthzoo.models import DepthModel, create_model
    from export.run_onnx import OnnxDepth, OnnxError, Parser, interleave, parse_size
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    root = Path(__file__).resolve().parent.parent
    todo = f"run `make setup` or `pip install -e '{root}[export]'`"
    print(f"latency: error: {missing.name} is not installed: {todo}", file=sys.stderr)
    sys.exit(2)

# What a file is timed on, by device: a name, the provider and its options.
VARIANTS: dict[str, list[tuple[str, str, dict[str, object]]]] = {
    "cpu": [("onnxruntime", "cpu", {})],
    "cuda": [
        ("onnxruntime", "cuda", {"use_tf32": 0}),
        ("onnxruntime, CUDA graph", "cuda", {"use_tf32": 0, "enable_cuda_graph": 1}),
        ("TensorRT", "tensorrt", {}),  # takes TF32 for float32
    ],
}
# On a CPU, idle threads of the one library may spin for a while on cores that the other needs.
PAUSE = {"cpu": 0.05, "cuda": 0.0}


@dataclass(frozen=True)
class Candidate:
    """Something to time: a call that returns when its work is done, and what it is.

    Attributes:
        run: the call.
        runs_in: "eager torch", "onnxruntime", ...
        file: the ONNX file's name.
        precision: "fp32" (full float32), "tf32", "fp16" or "int8".
        ready: milliseconds until it could be called; on a GPU, a first run is among them.
    """

    run: Callable[[], object]
    runs_in: str
    file: str | None
    precision: str
    ready: float | None


def compare(
    files: Sequence[Path],
    model: DepthModel | None = None,
    *,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    threads: int = 0,
    rounds: int = 30,
    seconds: float = 60,
) -> dict[str, Any]:
    """Latencies of one model's files, and of the model itself in eager PyTorch.

    Args:
        files: made by ``export/to_onnx.py`` of the same model.
        model: that model, which is left as it is; else one with random weights is made.
        batch: pictures at once.
        size: (H, W) of the network's input; else the first file's own.
        threads: on the CPU, of both libraries; 0: as many as PyTorch has.
        rounds: timed runs of each.
        seconds: no new round starts on a device after this time, once three are done.

    Returns:
        What is stored: ``rows``, in milliseconds, ``missing``, what could not be timed and why, and on what.

    Raises:
        ValueError: files of different models, one that cannot be loaded or does not take the size.
    """
    threads = threads or torch.get_num_threads()
    precisions: dict[Path, str] = {}
    name = None
    for path in files:
        session = OnnxDepth(path, size=size, threads=threads)
        size, facts = session.size, session.metadata
        if name not in (None, facts["name"]):
            raise OnnxError(f"{path} is of {facts['name']}, {files[0]} of {name}")
        name, precisions[path] = facts["name"], facts["precision"]
        model = model or create_model(name, weights=None, **facts.get("arguments", {}))
    assert model is not None and size is not None
    report: dict[str, Any] = {"model": name, "batch": batch, "size": list(size), "rows": [], "missing": {}}
    report |= machine(threads) | {"tf32": False, "cudnn_benchmark": True}
    with threads_of_torch(threads), cuda_math(tf32=False):
        for device in VARIANTS:
            exported = list(in_onnxruntime(precisions, device, batch, size, threads, report["missing"]))
            if not exported:
                continue
            eager = list(in_eager(model, device, batch, size, "fp16" in precisions.values()))
            candidates = {str(number): candidate for number, candidate in enumerate(eager + exported)}
            runs = {number: candidate.run for number, candidate in candidates.items()}
            latencies = interleave(runs, rounds, seconds, pause=PAUSE[device])
            for number, candidate in candidates.items():
                row = {key: value for key, value in vars(candidate).items() if key != "run"}
                times = round(latencies["0"].median / latencies[number].median, 2) if eager else None
                report["rows"].append(
                    {"device": device, **row, **asdict(latencies[number]), "times_eager": times}
                )
    return report


def in_eager(
    model: DepthModel, device: str, batch: int, size: tuple[int, int], half: bool
) -> Iterator[Candidate]:
    """The model in PyTorch, if that has the device; ``half``: on CUDA under autocast to float16, too."""
    if device == "cuda" and not torch.cuda.is_available():
        return
    network = copy.deepcopy(model).eval().to(device)
    images = torch.from_numpy(random_images(batch, size)).to(device)

    def run(precision: str) -> None:
        autocast = torch.autocast(device, torch.float16) if precision == "fp16" else nullcontext()
        with torch.inference_mode(), autocast:
            network(images)
        if device == "cuda":
            torch.cuda.synchronize()

    yield Candidate(lambda: run("fp32"), "eager torch", None, "fp32", None)
    if half and device == "cuda":
        yield Candidate(lambda: run("fp16"), "eager torch, autocast", None, "fp16", None)


def in_onnxruntime(
    precisions: Mapping[Path, str],
    device: str,
    batch: int,
    size: tuple[int, int],
    threads: int,
    missing: dict[str, str],
) -> Iterator[Candidate]:
    """Each file in each way that works on the device; what does not goes to ``missing``, with the reason."""
    images = random_images(batch, size)
    for runs_in, provider, options in VARIANTS[device]:
        for path, precision in precisions.items():
            if provider in missing:
                continue
            started = time.perf_counter()
            try:
                session = OnnxDepth(path, provider, size, threads, options)
                ready = 1000 * (time.perf_counter() - started)
                pixels = (images.transpose(0, 2, 3, 1) * 255).astype(np.uint8) if session.uint8 else images
                computed = "tf32" if (provider, precision) == ("tensorrt", "fp32") else precision
                yield Candidate(session.bind(pixels).run, runs_in, path.name, computed, ready)
            except OnnxError as error:
                useless = "does not work here" in str(error) or "this onnxruntime has no" in str(error)
                missing[provider if useless else f"{path.name}, {runs_in}, {provider}"] = str(error)


def random_images(batch: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, *size), np.float32)


@contextmanager
def cuda_math(tf32: bool) -> Iterator[None]:
    """PyTorch's float32 on CUDA in TF32 or in full, and cuDNN's algorithms chosen by trial, as onnxruntime does.

    PyTorch's defaults are TF32 in convolutions only, and no trial.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on, with what, and how busy it was before."""
    settings = {
        key: value for key, value in os.environ.items() if key.startswith(("OMP_", "KMP_", "CUDA_VIS"))
    }
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "settings": settings,
        },
        "versions": {
            "depthzoo": depthzoo.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
        "command": shlex.join(["python", *sys.argv]),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(report: Mapping[str, Any]) -> str:
    """The report to read."""
    height, width = report["size"]
    where, versions = report["machine"], report["versions"]
    lines = [
        f"latency of {report['model']}, {report['batch']}x{height}x{width}, on {where['processor']}, "
        f"{where['threads']} threads" + (f", and {where['gpu']}" if where["gpu"] else ""),
        f"torch {versions['torch']}, onnxruntime {versions['onnxruntime']}, load before {where['load_before']}",
    ]
    names = [
        ", ".join(filter(None, (row["runs_in"], row["precision"], row["file"]))) for row in report["rows"]
    ]
    for name, row in zip(names, report["rows"], strict=True):
        faster = f"{row['times_eager']:5.2f}x" if row["times_eager"] and row["file"] else " " * 6
        spread = (
            f"{row['quickest']:.1f} to {row['slowest']:.1f}, {row['runs']} runs; first {row['first']:.0f} ms"
        )
        ready = f", ready after {row['ready']:.0f} ms" if row["ready"] else ""
        longest = max(map(len, names))
        lines.append(
            f"{row['device']:<4}  {name:<{longest}}  {row['median']:8.1f} ms {faster}  ({spread}{ready})"
        )
    lines += [f"not timed: {what}: {reason}" for what, reason in report["missing"].items()]
    return "\n".join(lines)


def write(report: Mapping[str, Any], file: Path) -> Path:
    """Stores the report beside ``file``, the first of those compared."""
    path = file.with_suffix(".benchmark.json")
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def benchmark(files: Sequence[Path], model: DepthModel | None = None, **options: Any) -> None:
    """Prints the table of :func:`compare` and stores its report."""
    report = compare(files, model, **options)
    print(table(report))
    print(f"-> {write(report, files[0])}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="latency", description="Latency of exported files against eager PyTorch.")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="of one model, by export/to_onnx.py"
    )
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="(default: the first file's own)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at once (default: 1)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="on the CPU (default: PyTorch's)")
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="for each device (default: 60)"
    )
    args = parser.parse_args(argv)
    if args.batch < 1 or args.threads < 0:
        parser.error("--batch must be 1 or more, --threads 0 or more")
    try:
        benchmark(args.files, batch=args.batch, size=args.size, threads=args.threads, seconds=args.seconds)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("latency: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
