"""The command ``depthzoo``: list the models, show one, predict depth for pictures."""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch

from depthzoo import __version__, visualize
from depthzoo import weights as zoo_weights
from depthzoo.camera import focal_length
from depthzoo.colormaps import COLORMAPS
from depthzoo.errors import suggest
from depthzoo.images import Pixels, find_images, load_with_focal, unique_stems
from depthzoo.models import create_model, get_builder, list_models
from depthzoo.predictor import DEFAULT_MODEL, Focal, Prediction, predictor, select_device

# Kind of output: what is put after the picture's stem, and how it is written.
OUTPUTS: dict[str, tuple[str, Callable[[Prediction, Path, argparse.Namespace], None]]] = {
    "depth16": (".depth.png", lambda p, path, _: p.save_depth16(path)),
    "npy": (".npy", lambda p, path, _: p.save_npy(path)),
    "color": (".color.png", lambda p, path, options: p.save_color(path, options.colormap)),
    "panel": (".panel.png", lambda p, path, options: p.save_panel(path, colormap=options.colormap)),
    "ply": (".ply", lambda p, path, _: p.save_ply(path)),
}
FEW = 10  # up to so many pictures get a line each, more get a progress bar
CHUNK_PIXELS = 64_000_000  # pictures that are decoded at a time: at most so many pixels


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"depthzoo: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (by default the process's own).

    Returns:
        The exit code: 0 done; 1 some pictures could not be read; 2 wrong usage, or nothing could be done;
        130 interrupted; 141 whoever read the output went away.
    """
    try:
        options = _parser().parse_args(argv)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _complain("interrupted; what has been written is whole", 130)
    except BrokenPipeError:
        # Python flushes stdout once more as it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except torch.OutOfMemoryError:
        return _complain("error: out of memory; try a smaller --batch-size or --size, or --device cpu", 2)
    except (ValueError, OSError, ImportError) as error:
        return _complain(f"error: {error}", 2)


def _complain(message: str, code: int) -> int:
    print("depthzoo: " + " ".join(message.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="depthzoo", description="Depth in metres from one picture.")
    parser.add_argument("--version", action="version", version=f"depthzoo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="the models and how good they are")
    command.add_argument("pattern", nargs="?", metavar="PATTERN", help="shell-style, as in '*resnet*'")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="all about one model and its weights")
    command.add_argument(
        "name", metavar="NAME|FILE|RUN", help="a model, a .safetensors file or a run's folder"
    )
    command.set_defaults(run=_info)

    command = commands.add_parser("predict", help="depth of pictures")
    command.set_defaults(run=_predict)
    add = command.add_argument
    add("inputs", nargs="+", metavar="IMAGE|DIR|GLOB", help="pictures; of a folder, all that it holds")
    add("--model", metavar="NAME", help=f"see `depthzoo list` (that of the weights file, or {DEFAULT_MODEL})")
    add(
        "--weights",
        default="DEFAULT",
        metavar="TAG|FILE|RUN",
        help="a tag, a .safetensors file or a run's folder (the model's default)",
    )
    add(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder to write to; files of the same names are replaced (%(default)s)",
    )
    add("--device", metavar="cpu|cuda|mps", help="CUDA if there is a GPU, else the CPU")
    add("--batch-size", type=_positive, metavar="N", help="pictures that go through together (CPU 1, else 8)")
    add(
        "--save",
        type=_kinds,
        default=["depth16", "color"],
        metavar="KIND,...",
        help=f"any of {', '.join(OUTPUTS)}; depth16 is a PNG of millimetres (depth16,color)",
    )
    add(
        "--colormap",
        type=_colormap,
        default=visualize.DEFAULT_COLORMAP,
        metavar="NAME",
        help=f"{', '.join(COLORMAPS)} (%(default)s)",
    )
    camera = command.add_mutually_exclusive_group()
    camera.add_argument(
        "--focal",
        type=_focal,
        metavar="PX|canonical",
        help="focal length in pixels of the pictures, or canonical: that of the weights' camera "
        "(what EXIF states; canonical where it states none)",
    )
    camera.add_argument(
        "--fov", type=_fov, metavar="DEGREES", help="horizontal field of view, in place of --focal"
    )
    add(
        "--flip", action="store_true", help="average with the mirrored picture: a little better, half as fast"
    )
    add("--size", type=_size, metavar="HxW", help="working size of the model (the weights' own)")
    add("-r", "--recursive", action="store_true", help="go into the folders inside folders")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
    return int(text)


def _fov(text: str) -> float:
    try:
        focal_length(1, float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected degrees between 1 and 179, not {text!r}") from None
    return float(text)


def _colormap(text: str) -> str:
    try:
        visualize.colormap_lut(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _focal(text: str) -> float | Literal["canonical"]:
    if text == "canonical":
        return "canonical"
    try:
        pixels = float(text)
    except ValueError:
        pixels = 0.0
    if not 0 < pixels < float("inf"):
        raise argparse.ArgumentTypeError(f"expected pixels above 0, or canonical, not {text!r}")
    return pixels


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})[xX](\d{2,4})", text)
    if not match or min(int(match[1]), int(match[2])) < 32:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH from 32 to 9999 as in 480x640, not {text!r}")
    return int(match[1]), int(match[2])


def _kinds(text: str) -> list[str]:
    kinds = list(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    for kind in kinds:
        if kind not in OUTPUTS:
            raise argparse.ArgumentTypeError(f"unknown kind {kind!r}: {suggest(kind, OUTPUTS)}")
    if not kinds:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(OUTPUTS)}")
    return kinds


def _list(options: argparse.Namespace) -> int:
    print(_table(options.pattern))
    return 0


def _info(options: argparse.Namespace) -> int:
    print(_describe_model(options.name))
    return 0


def _predict(options: argparse.Namespace) -> int:
    device = select_device(options.device)
    paths, failures = find_images(options.inputs, options.recursive)
    if not paths:
        raise ValueError("; ".join(failures) or "no pictures")
    run = predictor(
        options.model,
        options.weights,
        device,
        size=options.size,
        batch_size=options.batch_size,
        flip=options.flip,
    )
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: is a file, expected a folder")
    options.out.mkdir(parents=True, exist_ok=True)

    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    few = len(paths) <= FEW
    for failure in failures:
        _complain(failure, 0)
    done = 0
    # No bar for a few, nor (None) where stderr is no terminal.
    with tqdm(total=len(paths), unit="picture", disable=True if few else None) as bar:
        stems = dict(zip(paths, unique_stems(paths), strict=True))
        for chunk in _chunks(paths, run.batch_size, failures, bar):
            images = [image for image, _ in chunk.values()]
            focals = [_camera(*loaded, options) for loaded in chunk.values()]
            predictions = run(images, [focal for focal, _ in focals])
            for path, prediction, (_, origin) in zip(chunk, predictions, focals, strict=True):
                written = _write(prediction, stems[path], options)
                if few:
                    print(_describe(path, prediction, origin, written))
                done += 1
                bar.update()
    print(
        f"{done} {'picture' if done == 1 else 'pictures'}: {', '.join(options.save)} in {options.out}{os.sep}"
    )
    return _complain(f"{len(failures)} of {len(failures) + done} could not be read", 1) if failures else 0


def _camera(image: Pixels, exif: float | None, options: argparse.Namespace) -> tuple[Focal, str]:
    """The focal length of a picture, and where it comes from."""
    if options.fov is not None:
        return focal_length(image.shape[1], options.fov), "given"
    if options.focal == "canonical" or (options.focal is None and exif is None):
        return "canonical", "canonical"
    return (exif, "EXIF") if options.focal is None else (options.focal, "given")


def _chunks(
    paths: list[Path], count: int, failures: list[str], bar: Any
) -> Iterator[dict[Path, tuple[Pixels, float | None]]]:
    """Decoded pictures and EXIF's focal lengths, ``count`` together; unreadable ones are reported and skipped."""
    chunk: dict[Path, tuple[Pixels, float | None]] = {}
    pixels = 0
    for path in paths:
        try:
            image, exif = load_with_focal(path)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            with bar.external_write_mode(file=sys.stderr):
                _complain(str(error), 0)
            bar.update()
            continue
        chunk[path] = image, exif
        pixels += image.size // 3
        if len(chunk) == count or pixels > CHUNK_PIXELS:
            yield chunk
            chunk, pixels = {}, 0
    if chunk:
        yield chunk


def _write(prediction: Prediction, stem: str, options: argparse.Namespace) -> list[Path]:
    written = []
    for kind in options.save:
        suffix, write = OUTPUTS[kind]
        written.append(options.out / (stem + suffix))
        write(prediction, written[-1], options)
    return written


def _describe(path: Path, prediction: Prediction, origin: str, written: list[Path]) -> str:
    depth = prediction.depth
    near, middle, far = float(depth.min()), float(np.median(depth)), float(depth.max())
    return (
        f"{path}: {depth.shape[1]}x{depth.shape[0]}, near {near:.2f} m, median {middle:.2f} m, "
        f"far {far:.2f} m, focal length {prediction.focal_px:.0f} px ({origin}) -> {', '.join(map(str, written))}"
    )


def _table(pattern: str | None = None) -> str:
    """One line a model: parameters, then of the default weights ("-" without) the file's size, the working size and
    the metrics, then all tags, default first.

    Raises:
        ValueError: nothing matches the shell-style ``pattern``; has the closest names.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}: {suggest(pattern or '', list_models())}")
    rows = [("NAME", "PARAMETERS", "FILE", "SIZE", "ABSREL", "D1", "WEIGHTS")]
    for name in names:
        tags = zoo_weights.tags(name)
        card = zoo_weights.card(name) if tags else {}
        means = card.get("metrics", {}).get("per_image", {})
        rows.append(
            (
                name,
                _number(_parameters(name), 1e-6, "M"),
                _number(card.get("bytes"), 1e-6, " MB"),
                "{}x{}".format(*card["size"]) if "size" in card else "-",
                _number(means.get("abs_rel"), digits=3),
                _number(means.get("d1"), digits=3),
                ", ".join(tags) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]))
    return "\n".join(lines)


def _describe_model(name: str) -> str:
    """What a model is (its docstring's first part) and what the cards of its weights say.

    Args:
        name: of a model; or a path to a weights file or a run's folder, of whose model and card it is then.

    Raises:
        ValueError: unknown name, with the closest ones, or a file that cannot be read.
    """
    if name not in list_models() and zoo_weights.is_path(name, name):
        path = zoo_weights.find("", Path(name))
        model = zoo_weights.model_of(path)
        return "\n\n".join([model, _summary(model), _lines([("weights", str(path)), *_facts(_card(path))])])
    blocks = [name, _summary(name)]
    tags = zoo_weights.tags(name)
    if not tags:
        blocks.append(_lines([("parameters", f"{_parameters(name):,}"), ("weights", "none yet")]))
    for index, tag in enumerate(tags):
        label = f"{tag} (default)" if index == 0 else tag
        blocks.append(_lines([("weights", label), *_facts(zoo_weights.card(name, tag))]))
    return "\n\n".join(blocks)


def _summary(name: str) -> str:
    return (inspect.getdoc(get_builder(name)) or "").split("\n\nArgs:")[0]


def _card(path: Path) -> dict[str, Any]:
    return zoo_weights.read_metadata(path) | {"file": path.name, "bytes": path.stat().st_size}


def _parameters(name: str) -> int:
    with torch.device("meta"):  # no memory, no initialisation
        return sum(p.numel() for p in create_model(name, weights=None).parameters())


def _lines(facts: list[tuple[str, str]]) -> str:
    return "\n".join(f"{key:<12} {value}" for key, value in facts)


def _facts(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "parameters" in card:
        yield "parameters", f"{card['parameters']:,}"
    if "bytes" in card:
        yield "file", f"{card.get('file', '?')}, {card['bytes'] / 1e6:.1f} MB"
    if "size" in card:
        yield "size", "{}x{} (height x width), the working size".format(*card["size"])
    if "depth_range" in card:
        yield "depth", "{} to {} {}".format(*card["depth_range"], card.get("unit", "m"))
    if camera := card.get("camera"):
        yield (
            "camera",
            f"{camera.get('name', '?')}, focal length {camera['focal_px']} px at {camera['at_width']} px",
        )
    metrics = card.get("metrics", {})
    if "protocol" in metrics:
        yield "protocol", str(metrics["protocol"])
    for averaging in ("per_image", "pooled"):
        if averaging in metrics:
            yield (
                averaging,
                ", ".join(f"{k} {v:.3f}" for k, v in metrics[averaging].items() if isinstance(v, float)),
            )
    for key in ("dataset", "recipe", "trained_on", "terms", "commit"):
        if key in card:
            yield key, str(card[key])


def _number(value: float | None, scale: float = 1, unit: str = "", digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}{unit}"
