"""Runs an ONNX file of the zoo with numpy, Pillow and onnxruntime: no PyTorch, no depthzoo.

    python export/run_onnx.py unet_resnet50.onnx photo.jpg --out out

writes out/photo.depth.png (16-bit, millimetres) and out/photo.preview.png. To use it in another project,
copy this one file:

    depth = OnnxDepth("unet_resnet50.onnx").predict(Image.open("photo.jpg"))  # metres, float32 (H, W)
"""

import argparse
import ctypes
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

try:
    import numpy as np
    import onnxruntime as ort
    from PIL import Image, ImageOps
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"run_onnx: error: no {missing.name}: pip install numpy pillow onnxruntime", file=sys.stderr)
    sys.exit(2)

Source: TypeAlias = str | Path | bytes  # bytes: the file's content
PROVIDERS = {name.lower(): f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt")}
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
    """An exported model: a picture in, metres out.

    Args:
        path: an ONNX file made by ``export/to_onnx.py``, or its content.
        provider: "cpu", "cuda" or "tensorrt"; one that does not work here is an error, never a fallback.
        size: (height, width) to work at in place of the file's own: the picture keeps its aspect and gets
            about this area. A file of one fixed size takes no other.
        threads: CPU threads; 0 leaves the choice to onnxruntime.

    Attributes:
        metadata: what the file says of itself, JSON decoded: name, unit, depth_range, camera, terms, ...
        fixed: (height, width) of a file of one fixed size, else None.
        size: (height, width), the working size.
        multiple: height and width of the input are multiples of this.

    Raises:
        OnnxError: not a file of ours, a size that it cannot take, a provider that does not work.
    """

    def __init__(
        self, path: Source, provider: str = "cpu", size: tuple[int, int] | None = None, threads: int = 0
    ) -> None:
        self.session = open_session(path, provider, threads)
        raw = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: decode(text) for key, text in raw.items()}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        ours = str(self.metadata.get("format", "")).startswith("depthzoo/")
        if not ours or [t.name for t in inputs] != ["image"] or [t.name for t in outputs] != ["depth"]:
            raise OnnxError(f"{label(path)} is an ONNX file, but not one made by depthzoo's to_onnx.py")
        height, width = inputs[0].shape[2:]
        self.multiple = int(self.metadata["input"]["multiple_of"])
        self.fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        if size is not None and self.fixed not in (None, size):
            raise OnnxError(f"{label(path)} takes {height}x{width} only, not {size[0]}x{size[1]}")
        if size is not None and (min(size) < self.multiple or any(side % self.multiple for side in size)):
            raise OnnxError(f"size must be multiples of {self.multiple}, not {size[0]}x{size[1]}")
        self.size: tuple[int, int] = self.fixed or size or tuple(self.metadata["size"])

    def run(self, images: np.ndarray) -> np.ndarray:
        """The network alone: float32 (N, 3, H, W), RGB in [0, 1], to float32 (N, 1, H, W), metres.

        Raises:
            OnnxError: for another type or shape, or a size that the file does not take.
        """
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3:
            raise OnnxError(f"images must be float32 (N, 3, H, W) in 0..1, got {images.dtype} {images.shape}")
        height, width = images.shape[2:]
        if self.fixed and (height, width) != self.fixed:
            raise OnnxError(f"this file takes {self.fixed[0]}x{self.fixed[1]} only, got {height}x{width}")
        # onnxruntime would run other sizes too, and fail in the middle or give edges that match nothing.
        if min(height, width) < self.multiple or height % self.multiple or width % self.multiple:
            raise OnnxError(f"height and width must be multiples of {self.multiple}, got {height}x{width}")
        return np.asarray(self.session.run(["depth"], {"image": images})[0])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture as the network's input (1, 3, h, w): upright RGB at the working size, in [0, 1]."""
        rgb = to_rgb(image)
        height, width = self.fixed or fit(rgb.height, rgb.width, self.size, self.multiple)
        small = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        return np.ascontiguousarray(small.transpose(2, 0, 1)[None])

    def predict(self, image: Image.Image) -> np.ndarray:
        """Depth of one picture at its own size, as it stands upright: float32 (H, W), metres."""
        upright = ImageOps.exif_transpose(image)
        depth = Image.fromarray(self.run(self.prepare(upright))[0, 0])
        # Plain bilinear, as PyTorch's; Image.resize would blur where the picture is the smaller one.
        scale = (depth.width / upright.width, 0, 0, 0, depth.height / upright.height, 0)
        return np.asarray(
            depth.transform(upright.size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
        )


def label(path: Source) -> str:
    return "the model" if isinstance(path, bytes) else str(path)


def decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def flatten(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as ("camera.name", value) pairs."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


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


def open_session(path: Source, provider: str, threads: int = 0) -> ort.InferenceSession:
    """An onnxruntime session that runs on ``provider`` or raises OnnxError."""
    if provider not in PROVIDERS:
        raise OnnxError(f"unknown provider {provider!r}: there are {', '.join(PROVIDERS)}")
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise OnnxError(f"{path}: no such file")
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise OnnxError(f"this onnxruntime has no {provider}: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails is raised, and said in one line below
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        ort.set_default_logger_severity(4)
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
    source = path if isinstance(path, bytes) else str(path)
    try:
        # TensorRT leaves the operators it lacks to CUDA.
        wanted_or_cuda = [wanted, PROVIDERS["cuda"]] if provider == "tensorrt" else [wanted]
        session = ort.InferenceSession(source, options, providers=wanted_or_cuda, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no base of their own
        if provider != "cpu" and (reason := missing_library(provider)):
            raise OnnxError(f"{provider} does not work here: {reason}") from error
        reason = str(error).strip().splitlines()[0]
        raise OnnxError(f"{label(path)}: onnxruntime cannot load it on {provider}: {reason}") from error
    if session.get_providers()[0] != wanted:
        raise OnnxError(
            f"{provider} does not work here: {missing_library(provider) or 'onnxruntime fell back to CPU'}"
        )
    return session


def missing_library(provider: str) -> str | None:
    """What keeps a GPU provider from loading on Linux, as far as the loader can tell.

    Only for a process in which the provider has failed: loading it by hand would break a working one.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not found)"
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / f"capi/libonnxruntime_providers_{provider}.so"))
    except OSError as error:
        hint = "tensorrt-cu13<11" if provider == "tensorrt" else "onnxruntime-gpu[cuda,cudnn]"
        return f"{str(error).splitlines()[0]} (pip install '{hint}')"
    return None


def save(depth: np.ndarray, stem: Path) -> tuple[Path, Path]:
    """Writes STEM.depth.png, 16-bit millimetres, and STEM.preview.png, from near (red) to far (blue)."""
    paths = stem.with_name(stem.name + ".depth.png"), stem.with_name(stem.name + ".preview.png")
    Image.fromarray((depth * 1000).round().clip(0, 65535).astype(np.uint16)).save(paths[0])
    near, far = np.percentile(depth, (1, 99))
    place = ((depth - near) / max(far - near, 1e-6)).clip(0, 1) * (len(NEAR_TO_FAR) - 1)
    anchors = np.arange(len(NEAR_TO_FAR))
    colours = [np.interp(place, anchors, channel) for channel in NEAR_TO_FAR.T]
    Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8)).save(paths[1])
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


def parse_size(text: str) -> tuple[int, int]:
    """ "480x640" as (480, 640)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"size must be HEIGHTxWIDTH, as 480x640, not {text!r}")
    return int(height), int(width)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="run_onnx", description="Depth in metres from pictures with an exported ONNX file.")
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the results (default: here)")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="working size, multiples of 32")
    parser.add_argument("--info", action="store_true", help="print what the file says of itself")
    args = parser.parse_args(argv)
    if not args.images and not args.info:
        parser.error("no picture given (or ask for --info)")
    stems = [path.stem for path in args.images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        parser.error(f"several pictures are called {min(twice)!r}: their results would overwrite each other")
    try:
        model = OnnxDepth(args.model, args.provider, args.size)
        if args.images:
            args.out.mkdir(parents=True, exist_ok=True)
    except (OnnxError, OSError) as error:
        parser.error(str(error))
    if args.info:
        facts = dict(flatten(dict(sorted(model.metadata.items()))))
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:<{width}}  {value}")
    failed = False
    for path in args.images:
        try:
            depth = model.predict(open_picture(path))
            saved = save(depth, args.out / path.stem)
        except (OnnxError, OSError) as error:
            print(f"run_onnx: error: {error}", file=sys.stderr)
            failed = True
            continue
        low, middle, high = depth.min(), np.median(depth), depth.max()
        print(f"{path}: min {low:.3f}  median {middle:.3f}  max {high:.3f} m -> {saved[0]}, {saved[1].name}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
