"""Runs an ONNX file of the zoo with numpy, Pillow and onnxruntime: no PyTorch, no depthzoo.

    python export/run_onnx.py unet_resnet50.onnx photo.jpg --out out

writes out/photo.depth.png (16-bit, millimetres) and out/photo.preview.png. To use it in another project,
copy this one file:

    depth = OnnxDepth("unet_resnet50.onnx").predict(Image.open("photo.jpg"))  # metres, float32 (H, W)
"""

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import math
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

try:
    import numpy as np
    import onnxruntime as ort
    from PIL import Image, ImageOps

    if not hasattr(ort, "InferenceSession"):
        raise ImportError(
            "onnxruntime is broken, as when onnxruntime and onnxruntime-gpu were installed together: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install one of them"
        )
except ImportError as error:
    if __name__ != "__main__":
        raise
    missing = isinstance(error, ModuleNotFoundError)
    reason = f"no {error.name}: pip install numpy pillow onnxruntime" if missing else error
    print(f"run_onnx: error: {reason}", file=sys.stderr)
    sys.exit(2)

Source: TypeAlias = str | Path | bytes  # bytes: the file's content
PROVIDERS = {name.lower(): f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt")}
# The camera that depth is predicted for, by its focal length as a fraction of the picture's width; a file's metadata
# may name another. What a camera of another focal length sees is as many times further away: see ``depth_scale``.
CANONICAL_FOCAL = 518.86 / 640
FAR = 1.25  # a side so many times as long, or as short, as one that the weights were trained at
KEPT_SHAPES = 8  # so many shapes of input keep their buffers on a GPU
# What computes with sizes, not with pixels, in a file that resizes: a GPU leaves it to the CPU on purpose.
SIZE_WORK = {"Shape", "Gather", "Slice", "Concat", "Cast", "Unsqueeze", "Range", "ReduceSum"}
SIZE_WORK |= {"Abs", "Add", "Sub", "Mul", "Div", "Sqrt", "Round", "Floor", "Max", "Min"}
# Colours of the preview from near to far, red to blue (after matplotlib's turbo_r).
# fmt: off
NEAR_TO_FAR = np.array([
    [122, 4, 3], [185, 30, 2], [228, 69, 10], [251, 129, 34], [250, 186, 57], [217, 228, 54], [161, 253, 61],
    [85, 250, 118], [26, 228, 182], [42, 185, 238], [70, 133, 250], [67, 78, 186], [48, 18, 59],
])
# fmt: on


class OnnxError(ValueError):
    """A file, size, array or provider that cannot be used; the message is one line."""


class OnnxDepth:
    """An exported model: a picture in, metres out. Threads may share it on the CPU, not on a GPU.

    Args:
        path: an ONNX file made by ``export/to_onnx.py``, or its content.
        provider: "cpu", "cuda" or "tensorrt"; one that does not work here is an error, never a fallback.
            On a GPU an empty picture runs at once: the slow first run, which finds all that is missing.
        size: (height, width) to work at in place of the file's own: the picture keeps its aspect and gets
            about this area. A file of one fixed size, or with uint8 input, takes no other.
        threads: CPU threads; 0 leaves the choice to onnxruntime.
        options: of the provider, as {"enable_cuda_graph": 1}, or of the session, which have a dot in them.

    Attributes:
        metadata: what the file says of itself, JSON decoded: name, unit, depth_range, camera, terms, ...
        uint8: the input is uint8 (N, H, W, 3) of any size, and resizing is inside the file.
        fixed: (height, width) of a file of one fixed size, else None.
        size: (height, width), the working size.
        multiple: height and width of the input are multiples of this.
        warning: why depth at this size is not to be trusted, which ``predict`` warns of; "" where it is.

    Raises:
        OnnxError: not a file of ours, a size that it cannot take, a provider that does not work.
    """

    def __init__(
        self,
        path: Source,
        provider: str = "cpu",
        size: tuple[int, int] | None = None,
        threads: int = 0,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.provider, self.options = provider, dict(options or {})
        self.session = open_session(path, provider, threads, self.options)
        self.metadata = read_metadata(self.session, label(path))
        image = self.session.get_inputs()[0]
        self.uint8 = image.type == "tensor(uint8)"
        height, width = image.shape[1:3] if self.uint8 else image.shape[2:]
        self.multiple = int(self.metadata["input"]["multiple_of"])
        self.fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        own: tuple[int, int] = self.fixed or tuple(self.metadata["size"])
        if size not in (None, own) and (self.fixed or self.uint8):
            raise OnnxError(f"{label(path)} takes {own[0]}x{own[1]} only, not {size[0]}x{size[1]}")
        if size and (min(size) < self.multiple or any(side % self.multiple for side in size)):
            raise OnnxError(f"size must be multiples of {self.multiple}, not {size[0]}x{size[1]}")
        self.size = size or own
        self.warning = size_warning(self.metadata, self.size)
        self.buffers: dict[tuple[int, ...], Buffers] = {}
        self.numbers = itertools.count(1)
        if provider != "cpu":
            self.run(self.blank())

    def run(self, images: np.ndarray) -> np.ndarray:
        """The network alone: float32 (N, 3, H, W), RGB in [0, 1], to float32 (N, 1, H, W), metres.

        A file with uint8 input takes uint8 (N, H, W, 3).

        Raises:
            OnnxError: for another type, shape or range, or a size that the file does not take.
        """
        if self.provider != "cpu":
            return self.bind(images).run().numpy()
        check_images(self, images)
        with one_line("onnxruntime cannot run it", self.provider):
            return np.asarray(self.session.run(["depth"], {"image": images})[0])

    def bind(self, images: np.ndarray) -> "Buffers":
        """Puts ``images`` into buffers on the device; those of their shape where it was met before."""
        check_images(self, images)
        if images.shape not in self.buffers:
            if len(self.buffers) == KEPT_SHAPES:
                self.buffers.clear()
            self.buffers[images.shape] = Buffers(self, images.shape, images.dtype, next(self.numbers))
        self.buffers[images.shape].image.update_inplace(images)
        return self.buffers[images.shape]

    def blank(self, batch: int = 1) -> np.ndarray:
        """Black pictures at the working size, to warm up and to measure with."""
        shape = (batch, *self.size, 3) if self.uint8 else (batch, 3, *self.size)
        return np.zeros(shape, np.uint8 if self.uint8 else np.float32)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture as the network's input, a batch of one: upright RGB, at the working size and in [0, 1]."""
        rgb = to_rgb(image)
        if self.uint8:
            return np.asarray(rgb)[None]
        height, width = self.fixed or fit(rgb.height, rgb.width, self.size, self.multiple)
        small = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        return np.ascontiguousarray(small.transpose(2, 0, 1)[None])

    def predict(self, image: Image.Image, focal_px: float | None = None) -> np.ndarray:
        """Depth of one picture at its own size, as it stands upright: float32 (H, W), metres.

        ``focal_px`` is its focal length in pixels, by default the canonical camera's; OnnxError unless above 0.
        """
        upright = ImageOps.exif_transpose(image)
        factor = depth_scale(self.metadata, focal_px, upright.width)
        if self.warning:
            warnings.warn(self.warning, stacklevel=2)
        return resize_depth(self.run(self.prepare(upright))[0, 0] * factor, upright.size)


class Buffers:
    """Input and output of one shape, bound to the network on the device where it runs.

    Attributes:
        image, depth: onnxruntime's values; ``image.update_inplace(array)``, ``depth.numpy()``.
    """

    def __init__(self, model: OnnxDepth, shape: tuple[int, ...], dtype: Any, number: int) -> None:
        device = ("cpu" if model.provider == "cpu" else "cuda", int(str(model.options.get("device_id", 0))))
        height, width = shape[1:3] if model.uint8 else shape[2:]
        self.model, self.binding, self.options = model, model.session.io_binding(), ort.RunOptions()
        # A CUDA graph, where one is asked for, holds addresses: each shape has a graph of its own.
        self.options.add_run_config_entry("gpu_graph_id", str(number))
        allocate = ort.OrtValue.ortvalue_from_shape_and_type
        with one_line("onnxruntime cannot run it", model.provider):
            self.image = allocate(shape, dtype, *device)
            self.depth = allocate((shape[0], 1, height, width), np.float32, *device)
            self.binding.bind_ortvalue_input("image", self.image)
            self.binding.bind_ortvalue_output("depth", self.depth)

    def run(self) -> Any:
        """Runs the network, waits until it is done and returns ``depth``, still on the device."""
        with one_line("onnxruntime cannot run it", self.model.provider):
            self.model.session.run_with_iobinding(self.binding, self.options)
            self.binding.synchronize_outputs()
        return self.depth


def label(path: Source) -> str:
    return "the model" if isinstance(path, bytes) else str(path)


def read_metadata(session: ort.InferenceSession, name: str) -> dict[str, Any]:
    """What a file of ours says of itself; any other raises OnnxError."""
    metadata: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    for key, text in metadata.items():
        with contextlib.suppress(ValueError):
            metadata[key] = json.loads(text)
    tensors = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
    says = str(metadata.get("format")).startswith("depthzoo/") and {"input", "size"} <= metadata.keys()
    if not says or tensors != ["image", "depth"]:
        raise OnnxError(
            f"{name} is an ONNX file, but not one made by depthzoo's to_onnx.py, or it is cut short"
        )
    return metadata


def size_warning(metadata: Mapping[str, Any], size: tuple[int, int]) -> str:
    """What there is to say of working at ``size`` (H, W); "" where it is near what the weights were trained at."""
    known = metadata.get("trained_sizes", [])
    areas = [height * width for height, width in known]
    if not areas or min(areas) / FAR**2 <= size[0] * size[1] <= max(areas) * FAR**2:
        return ""
    sizes = ", ".join(f"{height}x{width}" for height, width in known)
    return f"size {size[0]}x{size[1]} is far from {sizes}, which {metadata['name']} is trained for: depth will be off"


def depth_scale(metadata: Mapping[str, Any], focal_px: float | None, width: int) -> np.float32:
    """The factor from the network's depth to that of a picture ``width`` pixels wide, of a known focal length."""
    if focal_px is None:
        return np.float32(1)
    if not 0 < focal_px < math.inf:
        raise OnnxError(f"the focal length must be a number of pixels above 0, not {focal_px:g}")
    return np.float32(focal_px / (metadata.get("canonical_focal", CANONICAL_FOCAL) * width))


def check_images(model: OnnxDepth, images: np.ndarray) -> None:
    """Raises OnnxError for an array that the model does not take."""
    dtype, layout, channels = ("uint8", "(N, H, W, 3)", 3) if model.uint8 else ("float32", "(N, 3, H, W)", 1)
    if images.dtype != dtype or images.ndim != 4 or images.shape[channels] != 3 or not images.size:
        raise OnnxError(f"images must be {dtype} {layout}, got {images.dtype} {images.shape}")
    height, width = images.shape[1:3] if model.uint8 else images.shape[2:]
    if model.fixed not in (None, (height, width)):
        raise OnnxError(f"this file takes {model.fixed[0]}x{model.fixed[1]} only, got {height}x{width}")
    # onnxruntime would run other sizes too, and fail in the middle or give edges that match nothing.
    if height % model.multiple or width % model.multiple:
        raise OnnxError(f"height and width must be multiples of {model.multiple}, got {height}x{width}")
    if not model.uint8 and (most := images[:, :, ::16, ::16].max()) > 1.5:  # a sample, which costs nothing
        raise OnnxError(f"images must be RGB in 0..1, got values up to {most:g}")


def fit(height: int, width: int, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size with the aspect of height x width and the area of ``size``, in multiples of ``multiple``."""
    area = size[0] * size[1]
    longest = max(multiple, area // multiple // multiple * multiple)  # a panorama is squeezed
    scale = math.sqrt(area / (height * width)) / multiple
    h, w = (min(longest, max(1, round(side * scale)) * multiple) for side in (height, width))
    return h, w


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of any picture; 16-bit grey is scaled, transparent parts become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(
            ((np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth map (h, w) at ``size``, which is (width, height), as Pillow has it."""
    if depth.shape == size[::-1]:
        return depth
    map_ = Image.fromarray(depth)
    # Plain bilinear, as PyTorch's; Image.resize would blur where the picture is the smaller one.
    scale = (map_.width / size[0], 0, 0, 0, map_.height / size[1], 0)
    return np.asarray(map_.transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR))


def open_session(
    path: Source, provider: str, threads: int = 0, options: Mapping[str, object] | None = None
) -> ort.InferenceSession:
    """An onnxruntime session that runs on ``provider``, all of it, or raises OnnxError."""
    if provider not in PROVIDERS:
        raise OnnxError(f"unknown provider {provider!r}: there are {', '.join(PROVIDERS)}")
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise OnnxError(f"{path}: no such file")
    wanted, given = PROVIDERS[provider], {key: str(value) for key, value in (options or {}).items()}
    if wanted not in ort.get_available_providers():
        # Whichever of the two packages is there, or both in one folder: nothing less than this mends it.
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
        raise OnnxError(f"this onnxruntime has no {provider}: {mend}")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4  # what fails is raised, and said in one line below
    tells = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
    # Idle threads that spin gain little on an idle machine, and beside other work they cost half the speed.
    session_options = {"session.intra_op.allow_spinning": "0"}
    if provider != "cpu":
        key = "session.record_ep_graph_assignment_info" if tells else "session.disable_cpu_ep_fallback"
        session_options[key] = "1"
        ort.set_default_logger_severity(4)
        preload(provider)
    for key, value in (session_options | {key: given.pop(key) for key in list(given) if "." in key}).items():
        settings.add_session_config_entry(key, value)
    if provider == "cpu" and given:
        raise OnnxError(f"the cpu provider has no option {min(given)!r}")
    providers: list[Any] = [(wanted, given)]
    if provider == "tensorrt":  # it leaves the operators it lacks to CUDA
        providers.append((PROVIDERS["cuda"], {"device_id": given.get("device_id", "0")}))
    source = path if isinstance(path, bytes) else str(path)
    with one_line(f"{label(path)}: onnxruntime cannot load it", provider):
        session = ort.InferenceSession(source, settings, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != wanted:
        reason = missing_library(provider) or "it fell back to the CPU"
        raise OnnxError(f"{provider} does not work here: {reason}")
    if provider != "cpu" and tells and (left := left_on_cpu(session)):
        raise OnnxError(f"{label(path)}: {provider} leaves operators to the CPU: {dict(left)}")
    return session


@contextlib.contextmanager
def one_line(what: str, provider: str) -> Iterator[None]:
    """Makes onnxruntime's errors, which share no base of their own, one OnnxError of one line."""
    try:
        yield
    except Exception as error:
        if provider != "cpu" and (reason := missing_library(provider)):
            raise OnnxError(f"{provider} does not work here: {reason}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OnnxError(f"{what} on {provider}: {reason}") from error


def left_on_cpu(session: ort.InferenceSession) -> Counter[str]:
    """The operators that work on pixels and that were placed on the CPU, with their counts."""
    resizes = session.get_inputs()[0].type == "tensor(uint8)"
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name == PROVIDERS["cpu"] and not (resizes and node.op_type in SIZE_WORK)
    )


def preload(provider: str) -> None:
    """Loads the libraries that pip put where the system's loader does not look."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what is missing is named when it is missed
            ort.preload_dlls()
    spec = find_spec("tensorrt_libs") if provider == "tensorrt" else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(Path(folder, f"lib{name}.so.10")), ctypes.RTLD_GLOBAL)


def missing_library(provider: str) -> str | None:
    """What keeps a GPU provider from working on Linux, as far as the loader and the driver can tell.

    Only for a process in which the provider has failed: loading it by hand would break a working one.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not found)"
    text, version = ctypes.c_char_p(), ctypes.c_int()
    if code := driver.cuInit(0):
        driver.cuGetErrorString(code, ctypes.byref(text))
        return f"the NVIDIA driver says: {(text.value or b'unknown error').decode()} ({code})"
    needs = str(getattr(ort, "cuda_version", None) or "0")
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value // 1000 < int(needs.split(".")[0]):
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver is for CUDA {has}, this onnxruntime needs CUDA {needs}"
    hint = "tensorrt-cu13<11" if provider == "tensorrt" else "onnxruntime-gpu[cuda,cudnn]"
    library = Path(ort.__file__).parent / f"capi/libonnxruntime_providers_{provider}.so"
    for name in (str(library), "libcudnn.so.9"):  # onnxruntime looks for cuDNN at the first convolution only
        try:
            ctypes.CDLL(name)
        except OSError as error:
            return f"{str(error).splitlines()[0]} (pip install '{hint}')"
    return None


def colorize(depth: np.ndarray, near: float | None = None, far: float | None = None) -> np.ndarray:
    """Colours of a depth map, uint8 RGB, from near (red) to far (blue); default: its own range."""
    low, high = (float(value) for value in np.percentile(depth, (1, 99)))
    near, far = low if near is None else near, high if far is None else far
    place = ((depth - near) / max(far - near, 1e-6)).clip(0, 1) * (len(NEAR_TO_FAR) - 1)
    colours = [np.interp(place, np.arange(len(NEAR_TO_FAR)), channel) for channel in NEAR_TO_FAR.T]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def save(depth: np.ndarray, stem: Path) -> tuple[Path, Path]:
    """Writes STEM.depth.png, 16-bit millimetres, and STEM.preview.png in colours."""
    millimetres = (depth * 1000).round().clip(0, 65535).astype(np.uint16)
    paths = stem.with_name(stem.name + ".depth.png"), stem.with_name(stem.name + ".preview.png")
    for path, pixels in zip(paths, (millimetres, colorize(depth)), strict=True):
        aside = path.with_name(f".{path.name}.part")
        try:
            Image.fromarray(pixels).save(aside, "PNG")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return paths


def open_picture(path: Path) -> Image.Image:
    """A decoded picture.

    Raises:
        OnnxError: if it is missing, no picture, cut off or absurdly large.
    """
    if not path.is_file():
        raise OnnxError(f"{path}: no such file")
    try:
        image = Image.open(path)
        image.load()
    except Image.DecompressionBombError as error:
        raise OnnxError(f"{path}: too large a picture: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise OnnxError(f"{path}: not a picture that Pillow can read") from error
    return image


@dataclass(frozen=True)
class Latency:
    """Milliseconds: the first run, and the median, quickest and slowest of the later ones."""

    first: float
    median: float
    quickest: float
    slowest: float
    runs: int

    def __str__(self) -> str:
        spread = f"{self.quickest:.1f} to {self.slowest:.1f}, {self.runs} runs"
        return f"{self.median:8.1f} ms ({spread}); first run {self.first:.1f} ms"


def milliseconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    seconds: float = 30,
    first: Mapping[str, float] | None = None,
    pause: float = 0,
    clock: Callable[[Callable[[], object]], float] = milliseconds,
) -> dict[str, Latency]:
    """Times several things in turn, so that whatever else the machine does meets all of them alike.

    Args:
        runs: what to call, by name; a call returns when its work is done.
        rounds: timed calls of each, after one that is not.
        seconds: no new round starts after this time, once three are done.
        first: milliseconds of the first calls, where they came before.
        pause: seconds before each call, for another library's idle threads: they spin before they sleep.
        clock: makes a call and returns its milliseconds.
    """
    first = first or {name: clock(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(rounds + 1):
        if done > 3 and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            time.sleep(pause)
            times[name].append(clock(run))
    return {
        name: Latency(first[name], statistics.median(each), min(each), max(each), len(each))
        for name, (_, *each) in times.items()
    }


def parse_size(text: str) -> tuple[int, int]:
    """ "480x640" as (480, 640)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"size must be HEIGHTxWIDTH, as 480x640, not {text!r}")
    return int(height), int(width)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which can make warnings so."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def warn(self, message: Warning | str, *_: object, **__: object) -> None:
        print(f"{self.prog}: warning: {message}", file=sys.stderr)


def info(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts to read, as (name, text): figures rounded, one line for each innermost group."""
    plain = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in plain.items()}
    if prefix and texts:
        yield prefix, ", ".join(f"{key} {text}" for key, text in texts.items())
    else:
        yield from texts.items()
    for key in facts.keys() - texts.keys():
        yield from info(facts[key], f"{prefix}.{key}" if prefix else key)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="run_onnx", description="Depth in metres from pictures with an exported ONNX file.")
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="where to run (default: cpu)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the provider or session"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="on the CPU (default: all cores)")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="working size, multiples of 32")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--focal", type=float, metavar="PX", help="focal length of the pictures in pixels")
    camera.add_argument(
        "--fov", type=float, metavar="DEG", help="their horizontal field of view, in its place"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the results (default: here)")
    parser.add_argument("--info", action="store_true", help="print what the file says of itself")
    parser.add_argument(
        "--benchmark", type=int, metavar="N", help="measure the network on N pictures at once"
    )
    args = parser.parse_intermixed_args(argv)  # pictures may follow the flags
    if not (args.images or args.info or args.benchmark is not None):
        parser.error("no picture given (or ask for --info or --benchmark 1)")
    stems = [path.stem for path in args.images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        parser.error(f"several pictures are called {min(twice)!r}: their results would overwrite each other")
    if wrong := [text for text in args.option if not all(text.partition("="))]:
        parser.error(f"an option is KEY=VALUE, as use_tf32=0, not {wrong[0]!r}")
    if args.threads < 0 or (args.benchmark is not None and args.benchmark < 1):
        parser.error("--threads must be 0 or more, --benchmark 1 or more")
    if args.fov is not None and not 1 < args.fov < 179:
        parser.error(f"--fov must be between 1 and 179 degrees, not {args.fov:g}")
    if args.focal is not None and not 0 < args.focal < math.inf:
        parser.error(f"--focal must be a number of pixels above 0, not {args.focal:g}")
    options = {key: value for key, _, value in (text.partition("=") for text in args.option)}
    try:
        started = time.perf_counter()
        model = OnnxDepth(args.model, args.provider, args.size, args.threads, options)
        ready = 1000 * (time.perf_counter() - started)
        if args.info:
            facts = sorted(info(model.metadata))
            width = max(len(name) for name, _ in facts)
            for name, text in facts:
                print(f"{name:<{width}}  " + text.strip().replace("\n", "\n" + " " * (width + 2)))
        if args.benchmark:
            shape = "x".join(map(str, (args.benchmark, *model.size)))
            print(f"{args.model}: {args.provider}, {shape}, ready after {ready:.0f} ms", flush=True)
            print(interleave({"": model.bind(model.blank(args.benchmark)).run})[""])
        with warnings.catch_warnings():
            warnings.showwarning = parser.warn
            return predict_all(model, args.images, args.out, args.focal, args.fov)
    except (OnnxError, OSError, MemoryError) as error:
        parser.error(str(error) or "not enough memory")
    except KeyboardInterrupt:
        print("run_onnx: interrupted", file=sys.stderr)
        return 130


def predict_all(
    model: OnnxDepth, images: Sequence[Path], out: Path, focal: float | None = None, fov: float | None = None
) -> int:
    """Saves the depth of each picture, with a line for each; the exit code says whether all could be read."""
    code = 0
    for path in images:
        out.mkdir(parents=True, exist_ok=True)
        try:
            picture = ImageOps.exif_transpose(open_picture(path))
            if fov is not None:
                focal = picture.width / 2 / math.tan(math.radians(fov) / 2)
            depth = model.predict(picture, focal)
            saved = save(depth, out / path.stem)
        except (OnnxError, OSError) as error:
            print(f"run_onnx: error: {error}", file=sys.stderr)
            code = 2
            continue
        low, middle, high = depth.min(), np.median(depth), depth.max()
        figures = f"min {low:.3f}  median {middle:.3f}  max {high:.3f} m"
        print(f"{path}: {figures} -> {saved[0]}, {saved[1].name}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
