"""Run an ONNX file of depthzoo with numpy, Pillow and onnxruntime: no PyTorch, no depthzoo.

    python export/run_onnx.py unet_resnet50.onnx photo.jpg --out out

writes out/photo.depth.png (16-bit millimetres) and out/photo.color.png. To use a model in another project, copy this
file:

    depth = OnnxDepth("unet_resnet50.onnx").predict(Image.open("photo.jpg"))  # metres, float32 (H, W)
"""

import argparse
import contextlib
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, overload

try:
    import numpy as np
    import onnxruntime as ort
    from onnxruntime import InferenceSession, SessionOptions
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    if __name__ != "__main__":
        raise
    todo = "pip install numpy pillow onnxruntime"
    if "InferenceSession" in str(error):  # both were installed, and one was uninstalled
        todo = "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
    print(f"run_onnx: error: {error}: {todo}", file=sys.stderr)
    sys.exit(2)

PROVIDERS = {name.lower(): f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt")}
# Focal length of the camera that depth is predicted for, as a fraction of the image width.
CANONICAL_FOCAL = 518.86 / 640
# EXIF's focal length on 35 mm film, whose frame is 36 mm wide, and its plausible values in millimetres.
EXIF_IFD, FOCAL_35MM, LENSES = 0x8769, 0xA405, range(2, 5001)
Focal = float | Literal["canonical"] | None
# A working size is far from the trained ones where its sides are longer or shorter by this factor.
FAR = 1.25
# Longest side of a working size: longer ones exhaust the memory.
LONGEST = 4096
# fmt: off
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif", ".heic"}
DEPTH_SUFFIX, COLOR_SUFFIX = ".depth.png", ".color.png"  # of results, which are not input again
# Colors from near to far, red to blue (sampled from matplotlib's turbo_r).
NEAR_TO_FAR = np.array([
    [122, 4, 3], [185, 30, 2], [228, 69, 10], [251, 129, 34], [250, 186, 57], [217, 228, 54], [161, 253, 61],
    [85, 250, 118], [26, 228, 182], [42, 185, 238], [70, 133, 250], [67, 78, 186], [48, 18, 59],
])
# fmt: on


class OnnxError(ValueError):
    """A file, size, array or provider that cannot be used. The message is one line."""


class OnnxDepth:
    """An exported model. Threads may share one instance.

    Args:
        path: an ONNX file made by ``export/to_onnx.py``, or its content.
        provider: "cpu", "cuda" or "tensorrt". A provider that does not work here is an error, never a fallback.
        size: (height, width) to work at instead of the file's own size. An image keeps its aspect ratio and is
            resized to about this area. A file with a fixed size or with uint8 input takes no other size.
        threads: CPU threads; 0 leaves the choice to onnxruntime.
        options: provider options, such as {"use_tf32": 0}, and session options, whose keys contain a dot.

    Attributes:
        session: the ``onnxruntime.InferenceSession``.
        metadata: the file's metadata, decoded from JSON: name, unit, depth_range, camera, terms, ...
        uint8: whether the input is uint8 (N, H, W, 3) of any size, resized inside the file.
        fixed: (height, width) of a file with a fixed size, else None.
        size: (height, width), the working size.
        multiple: height and width of the input are multiples of this.

    Raises:
        OnnxError: the file is not a depthzoo export, does not take ``size``, or ``provider`` does not work.
    """

    def __init__(
        self,
        path: str | Path | bytes,
        provider: str = "cpu",
        size: tuple[int, int] | None = None,
        threads: int = 0,
        options: Mapping[str, object] | None = None,
    ) -> None:
        name = "the model" if isinstance(path, bytes) else str(path)
        self.session = open_session(path, name, provider, threads, options or {})
        self.metadata = read_metadata(self.session, name)
        image = self.session.get_inputs()[0]
        self.uint8 = image.type == "tensor(uint8)"
        height, width = image.shape[1:3] if self.uint8 else image.shape[2:]
        self.multiple = int(self.metadata["input"]["multiple_of"])
        self.fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        own: tuple[int, int] = self.fixed or tuple(self.metadata["size"])
        if size not in (None, own) and (self.fixed or self.uint8):
            raise OnnxError(f"{name} takes {own[0]}x{own[1]} only, not {size[0]}x{size[1]}")
        if size:
            check_size(size, self.multiple)
        self.size = size or own
        if message := size_warning(self.metadata, self.size):
            warnings.warn(message, stacklevel=2)

    @overload
    def predict(self, image: Image.Image, focal_px: Focal = None) -> np.ndarray: ...
    @overload
    def predict(
        self, image: Sequence[Image.Image], focal_px: Focal | Sequence[Focal] = None
    ) -> list[np.ndarray]: ...
    def predict(
        self, image: Image.Image | Sequence[Image.Image], focal_px: Focal | Sequence[Focal] = None
    ) -> np.ndarray | list[np.ndarray]:
        """Predict the depth of an image, turned upright, at its own size: float32 (H, W), metres.

        Args:
            image: a PIL image of any mode and size; or several, which run in one batch per shape of the network's
                input, and give a list.
            focal_px: focal length of the camera in pixels, or "canonical" for that of the training data. If None, what
                EXIF states, else the canonical one. For several images one for all, or a list.

        Raises:
            OnnxError: ``focal_px`` is not above 0, or not one for each image.
        """
        images = [image] if isinstance(image, Image.Image) else list(image)
        focals: list[Any] = (
            list(focal_px) if isinstance(focal_px, (list, tuple)) else [focal_px] * len(images)
        )
        if len(focals) != len(images):
            raise OnnxError(f"{len(focals)} focal lengths for {len(images)} images")
        # Before the images are turned: that may drop their EXIF.
        scales = [self.focal(*pair)[0] / self.canonical(pair[0]) for pair in zip(images, focals, strict=True)]
        uprights = [ImageOps.exif_transpose(each) for each in images]
        inputs = [self.prepare(upright) for upright in uprights]
        batches: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, array in enumerate(inputs):
            batches[array.shape].append(index)
        depths: dict[int, np.ndarray] = {}
        for batch in batches.values():
            outputs = self.run(np.concatenate([inputs[index] for index in batch]))
            for index, depth in zip(batch, outputs, strict=True):
                depths[index] = resize_depth(depth[0] * np.float32(scales[index]), uprights[index].size)
        return depths[0] if isinstance(image, Image.Image) else [depths[i] for i in range(len(images))]

    def canonical(self, image: Image.Image) -> float:
        """Return the focal length in pixels for which the network predicts the depth of an image."""
        # A turned camera keeps its focal length: that of a portrait refers to the longer side.
        return float(self.metadata.get("canonical_focal", CANONICAL_FOCAL)) * max(image.size)

    def focal(self, image: Image.Image, focal_px: Focal = None) -> tuple[float, str]:
        """Return the focal length of an image in pixels, and its source: "given", "EXIF" or "canonical".

        EXIF does not tell whether an image was cropped.

        Args:
            image: with its EXIF.
            focal_px: as in :meth:`predict`.

        Raises:
            OnnxError: ``focal_px`` is not above 0.
        """
        if focal_px is None:
            try:
                film = round(float(image.getexif().get_ifd(EXIF_IFD).get(FOCAL_35MM, 0)))
            except Exception:  # Pillow raises nearly anything on damaged metadata
                film = 0
            if film in LENSES:
                return film / 36 * max(image.size), "EXIF"
        if focal_px is None or focal_px == "canonical":
            return self.canonical(image), "canonical"
        if not (isinstance(focal_px, (int, float, np.number)) and 0 < focal_px < math.inf):
            raise OnnxError(f"the focal length must be a number of pixels above 0, not {focal_px}")
        return float(focal_px), "given"

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert an image to the network's input, a batch of one: RGB, upright, at the working size."""
        rgb = to_rgb(image)
        if self.uint8:
            return np.asarray(rgb)[None]
        height, width = self.fixed or fit(rgb.height, rgb.width, self.size, self.multiple)
        small = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        return np.ascontiguousarray(small.transpose(2, 0, 1)[None])

    def run(self, images: np.ndarray) -> np.ndarray:
        """Run the network alone: float32 (N, 3, H, W), RGB in [0, 1], to float32 (N, 1, H, W), metres.

        A file with uint8 input takes uint8 (N, H, W, 3).

        Raises:
            OnnxError: another type, shape or range, or a size that the file does not take.
        """
        check_images(self, images)
        try:
            (depth,) = self.session.run(["depth"], {"image": images})
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise OnnxError(f"onnxruntime cannot run the model: {first_line(error)}") from error
        return np.asarray(depth)


def open_session(
    path: str | Path | bytes, name: str, provider: str, threads: int, options: Mapping[str, object]
) -> InferenceSession:
    """Open an onnxruntime session that runs entirely on ``provider``."""
    if provider not in PROVIDERS:
        raise OnnxError(f"unknown provider {provider!r}: there are {', '.join(PROVIDERS)}")
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise OnnxError(f"{path}: no such file")
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise OnnxError(
            f"this onnxruntime has no {provider}: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    settings = SessionOptions()
    settings.intra_op_num_threads = threads
    # Idle threads that spin gain little on an idle machine and cost half the speed of other work.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN as pip installs them
    own: dict[str, str] = {}
    for key, value in options.items():
        if "." in key:
            settings.add_session_config_entry(key, str(value))
        else:
            own[key] = str(value)
    if provider == "cpu" and own:
        raise OnnxError(f"the cpu provider has no option {min(own)!r}")
    providers: list[Any] = [(PROVIDERS[provider], own)]
    if provider == "tensorrt":  # TensorRT leaves the operators that it lacks to CUDA
        providers.append((PROVIDERS["cuda"], {"device_id": own.get("device_id", "0")}))
    try:
        source = path if isinstance(path, bytes) else str(path)
        session = InferenceSession(source, settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise OnnxError(f"{name}: onnxruntime cannot load it on {provider}: {first_line(error)}") from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise OnnxError(f"{provider} does not work here: onnxruntime fell back to the CPU")
    return session


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_metadata(session: InferenceSession, name: str) -> dict[str, Any]:
    """Read the metadata of a depthzoo export."""
    metadata: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    for key, text in metadata.items():
        with contextlib.suppress(ValueError):
            metadata[key] = json.loads(text)
    tensors = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
    ours = str(metadata.get("format")).startswith("depthzoo/") and {"input", "size"} <= metadata.keys()
    if not ours or tensors != ["image", "depth"]:
        raise OnnxError(
            f"{name} is an ONNX file, but not one made by depthzoo's to_onnx.py, or it is cut short"
        )
    return metadata


def size_warning(metadata: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return a warning where ``size`` (H, W) is far from the sizes that the weights were trained at, else ""."""
    known = metadata.get("trained_sizes", [])
    areas = [height * width for height, width in known]
    if not areas or min(areas) / FAR**2 <= size[0] * size[1] <= max(areas) * FAR**2:
        return ""
    sizes = ", ".join(f"{height}x{width}" for height, width in known)
    return f"size {size[0]}x{size[1]} is far from {sizes}, which {metadata['name']} is trained for: depth will be off"


def check_size(size: tuple[int, int], multiple: int) -> None:
    """Raise OnnxError for a working size (H, W) that a network does not take."""
    if any(side % multiple or not multiple <= side <= LONGEST for side in size):
        raise OnnxError(f"size must be multiples of {multiple} up to {LONGEST}, not {size[0]}x{size[1]}")


def check_images(model: OnnxDepth, images: np.ndarray) -> None:
    """Raise OnnxError for an array that the model does not take."""
    dtype, layout, channels = ("uint8", "(N, H, W, 3)", 3) if model.uint8 else ("float32", "(N, 3, H, W)", 1)
    if images.dtype != dtype or images.ndim != 4 or images.shape[channels] != 3 or not images.size:
        raise OnnxError(f"images must be {dtype} {layout}, got {images.dtype} {images.shape}")
    height, width = images.shape[1:3] if model.uint8 else images.shape[2:]
    if model.fixed not in (None, (height, width)):
        raise OnnxError(f"this file takes {model.fixed[0]}x{model.fixed[1]} only, got {height}x{width}")
    # onnxruntime would run other sizes too, and fail halfway or return edges that do not match.
    if height % model.multiple or width % model.multiple:
        raise OnnxError(f"height and width must be multiples of {model.multiple}, got {height}x{width}")
    if not model.uint8 and (peak := images[:, :, ::16, ::16].max()) > 1.5:  # a sample of pixels is free
        raise OnnxError(f"images must be RGB in [0, 1], got values up to {peak:g}")


def fit(height: int, width: int, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size with the aspect ratio of height x width and the area of ``size``, in multiples."""
    area = size[0] * size[1]
    longest = max(multiple, area // multiple // multiple * multiple)  # limits the length of a panorama
    scale = math.sqrt(area / (height * width)) / multiple
    h, w = (min(longest, max(1, round(side * scale)) * multiple) for side in (height, width))
    return h, w


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to upright 8-bit RGB: 16-bit grey is scaled, transparent parts become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a depth map (h, w) to ``size``, (width, height) as in Pillow, with plain bilinear interpolation."""
    if depth.shape == size[::-1]:
        return depth
    # As PyTorch does; Image.resize would blur where the image is smaller than the map.
    scale = (depth.shape[1] / size[0], 0, 0, 0, depth.shape[0] / size[1], 0)
    resized = Image.fromarray(depth).transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
    return np.asarray(resized)


def colorize(depth: np.ndarray, near: float | None = None, far: float | None = None) -> np.ndarray:
    """Color a depth map from near (red) to far (blue): uint8 RGB. The default range is the map's own."""
    low, high = (float(value) for value in np.percentile(depth, (1, 99)))
    near, far = low if near is None else near, high if far is None else far
    steps = np.linspace(0, len(NEAR_TO_FAR) - 1, 256)
    channels = [np.interp(steps, np.arange(len(NEAR_TO_FAR)), channel) for channel in NEAR_TO_FAR.T]
    palette = np.stack(channels, axis=-1).round().astype(np.uint8)
    place = ((depth - near) * (255 / max(far - near, 1e-6))).clip(0, 255)
    return palette[(place + 0.5).astype(np.uint8)]


def millimetres(depth: np.ndarray) -> Image.Image:
    """Return a depth map as a 16-bit image of millimetres, up to 65.535 m."""
    return Image.fromarray((depth * 1000).round().clip(0, 65535).astype(np.uint16))


def save(depth: np.ndarray, stem: Path) -> Path:
    """Write STEM.depth.png, 16-bit millimetres, and STEM.color.png. Return the first."""
    paths = stem.with_name(stem.name + DEPTH_SUFFIX), stem.with_name(stem.name + COLOR_SUFFIX)
    for path, image in zip(paths, (millimetres(depth), Image.fromarray(colorize(depth))), strict=True):
        temporary = path.with_name(f".{path.name}.part")
        try:
            image.save(temporary, "PNG")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths[0]


def open_image(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """Decode an image file.

    Args:
        file: its path, or a binary file object.
        name: what errors call it; by default the path.

    Raises:
        OnnxError: the file is missing, no image, truncated or too large.
    """
    name = name or str(file)
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError:
        raise OnnxError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise OnnxError(f"{name}: not an image in a format that Pillow reads") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise OnnxError(f"{name}: cannot be decoded: {first_line(error)}") from error
    return image


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image, and not of a result."""
    return Path(name).suffix.lower() in SUFFIXES and not name.endswith((DEPTH_SUFFIX, COLOR_SUFFIX))


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths, and the images in those that are folders; not the results of earlier runs.

    Raises:
        OnnxError: a folder has no images.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        images = sorted(file for file in path.iterdir() if is_image(file.name))
        if not images:
            raise OnnxError(f"{path}: no images in this folder")
        yield from images


def parse_size(text: str) -> tuple[int, int]:
    """Parse "480x640" to (480, 640)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"size must be HEIGHTxWIDTH, as 480x640, not {text!r}")
    return int(height), int(width)


def parse_option(text: str) -> tuple[str, str]:
    """Parse "use_tf32=0" to ("use_tf32", "0")."""
    key, _, value = text.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"an option is KEY=VALUE, as use_tf32=0, not {text!r}")
    return key, value


def parse_focal(text: str) -> Focal:
    """Parse "721.5" or "canonical"."""
    if text == "canonical":
        return "canonical"
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"a focal length is a number of pixels above 0, or canonical, not {text!r}"
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_onnx", description="Predict depth with an exported ONNX file.")
    add = parser.add_argument
    add("model", help="a file made by export/to_onnx.py")
    add("images", nargs="*", type=Path, metavar="IMAGE", help="image files, or folders of them")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the results (default: out)")
    add("--batch", type=int, default=1, metavar="N", help="images predicted together (default: 1)")
    add("--size", type=parse_size, metavar="HxW", help="working size, multiples of 32")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument(
        "--focal",
        type=parse_focal,
        metavar="PX",
        help="in pixels, or canonical (default: EXIF's, else canonical)",
    )
    camera.add_argument("--fov", type=float, metavar="DEG", help="horizontal field of view of the images")
    add("--provider", choices=PROVIDERS, default="cpu", help="where to run (default: cpu)")
    add("--threads", type=int, default=0, metavar="N", help="on the CPU (default: all cores)")
    add(
        "--option",
        action="append",
        type=parse_option,
        default=[],
        metavar="KEY=VALUE",
        help="option of the provider or session",
    )
    add("--info", action="store_true", help="print the file's metadata as JSON, without the training recipe")
    args = parser.parse_intermixed_args(argv)  # images may follow the flags
    if not (args.images or args.info):
        parser.error("no image given")
    if args.fov is not None and not 1 < args.fov < 179:
        parser.error(f"--fov must be between 1 and 179 degrees, not {args.fov:g}")
    if args.threads < 0:
        parser.error("--threads must be 0 or more")
    if args.batch < 1:
        parser.error("--batch must be 1 or more")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; name a folder")
    return args


def predict_files(model: OnnxDepth, paths: Sequence[Path], args: argparse.Namespace) -> bool:
    """Predict and save images a batch at a time. Return whether all could be read."""
    complete = True
    for start in range(0, len(paths), args.batch):
        names, images, focals = [], [], []
        for path in paths[start : start + args.batch]:
            try:
                image = open_image(path)
            except OnnxError as error:
                print(f"run_onnx: error: {error}", file=sys.stderr)
                complete = False
                continue
            focal = args.focal
            if args.fov is not None:
                focal = ImageOps.exif_transpose(image).width / 2 / math.tan(math.radians(args.fov) / 2)
            names.append(path)
            images.append(image)
            focals.append(model.focal(image, focal))
        depths = model.predict(images, [pixels for pixels, _ in focals])
        for path, (pixels, source), depth in zip(names, focals, depths, strict=True):
            low, middle, high = depth.min(), np.median(depth), depth.max()
            print(
                f"{path}: min {low:.3f}  median {middle:.3f}  max {high:.3f} m, focal length {pixels:.0f} px "
                f"({source}) -> {save(depth, args.out / path.stem)}",
                flush=True,
            )
    return complete


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    try:
        model = OnnxDepth(args.model, args.provider, args.size, args.threads, dict(args.option))
        if args.info:
            facts = {key: value for key, value in sorted(model.metadata.items()) if key != "recipe"}
            lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
            print("{", ",\n".join(lines), "}", sep="\n")
        paths = list(find_images(args.images))
        stems: dict[str, Path] = {}
        for path in paths:
            if (other := stems.setdefault(path.stem, path)) is not path:
                raise OnnxError(
                    f"{other} and {path} have the same name: one would overwrite the other's depth"
                )
        if paths:
            args.out.mkdir(parents=True, exist_ok=True)
        return 0 if predict_files(model, paths, args) else 2
    except (OnnxError, OSError, MemoryError) as error:
        print(f"run_onnx: error: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_onnx: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"run_onnx: warning: {message}\n"  # type: ignore[assignment]
    sys.exit(main())
