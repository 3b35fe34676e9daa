"""The command ``depthzoo``: list the models, describe one, predict depth."""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from depthzoo import __version__, visualize
from depthzoo import weights as zoo_weights
from depthzoo.camera import focal_length
from depthzoo.colormaps import COLORMAPS
from depthzoo.errors import suggest
from depthzoo.images import Pixels, find_images, load_with_focal
from depthzoo.models import create_model, get_builder, list_models
from depthzoo.prediction import DEFAULT_MODEL, Focal, Prediction, predictor, select_device

# Kinds of output: the suffix, and the function that writes it.
OUTPUTS: dict[str, tuple[str, Callable[[Prediction, Path, argparse.Namespace], None]]] = {
    "depth16": (".depth.png", lambda p, path, _: p.save_depth16(path)),
    "npy": (".npy", lambda p, path, _: p.save_npy(path)),
    "color": (".color.png", lambda p, path, args: p.save_color(path, args.colormap)),
    "panel": (".panel.png", lambda p, path, args: p.save_panel(path, colormap=args.colormap)),
    "ply": (".ply", lambda p, path, _: p.save_ply(path)),
}
FEW = 10  # up to this number each image gets a line; more get a progress bar
SAVE_HELP = f"any of {', '.join(OUTPUTS)}; depth16 is a PNG of millimetres (depth16,color)"
FOCAL_HELP = "focal length of the images in pixels, or that of the weights' camera (EXIF's, else canonical)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; by default those of the process.

    Returns:
        The exit code: 0 done; 1 some images could not be read; 2 wrong usage, or nothing could be done;
        130 interrupted; 141 the reader of the output is gone.
    """
    try:
        args = _parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _complain("interrupted; all files written so far are complete", 130)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except torch.OutOfMemoryError:
        return _complain("error: out of memory; try a smaller --batch-size or --size, or --device cpu", 2)
    except (ValueError, OSError, ImportError) as error:
        return _complain(f"error: {error}", 2)


def _complain(message: str, code: int) -> int:
    print("depthzoo: " + " ".join(message.split()), file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"depthzoo: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="depthzoo", description="Depth in metres from one image.")
    parser.add_argument("--version", action="version", version=f"depthzoo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="list the models and their accuracy")
    command.add_argument("pattern", nargs="?", metavar="PATTERN", help="shell-style, as in '*resnet*'")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="describe one model and its weights")
    command.add_argument("name", metavar="NAME|FILE|RUN", help="a model, a .safetensors file or a run folder")
    command.set_defaults(run=_info)

    command = commands.add_parser("predict", help="predict the depth of images")
    command.set_defaults(run=_predict)
    add = command.add_argument
    add("inputs", nargs="+", metavar="IMAGE|DIR", help="images; of a folder, all images in it")
    add("--model", metavar="NAME", help=f"see `depthzoo list` (that of the weights file, or {DEFAULT_MODEL})")
    add(
        "--weights",
        default="DEFAULT",
        metavar="TAG|FILE|RUN",
        help="see `depthzoo info` (the model's default)",
    )
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder to write to (%(default)s)")
    add("--device", metavar="cpu|cuda|mps", help="(CUDA if there is a GPU, else the CPU)")
    add("--batch-size", type=int, metavar="N", help="images predicted together (CPU 1, else 8)")
    add("--save", type=_kinds, default=["depth16", "color"], metavar="KIND,...", help=SAVE_HELP)
    add("--colormap", choices=COLORMAPS, default=visualize.DEFAULT_COLORMAP, help="(%(default)s)")
    camera = command.add_mutually_exclusive_group()
    camera.add_argument("--focal", type=_focal, metavar="PX|canonical", help=FOCAL_HELP)
    camera.add_argument("--fov", type=float, metavar="DEGREES", help="horizontal field of view")
    add("--flip", action="store_true", help="average with the mirrored image: a little better, half as fast")
    add("--size", type=_size, metavar="HxW", help="working size of the model (that of the weights)")
    add("-r", "--recursive", action="store_true", help="descend into the folders of a folder")
    return parser


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


def _list(args: argparse.Namespace) -> int:
    names = list_models(args.pattern)
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}: {suggest(args.pattern, list_models())}")
    rows = [["NAME", "PARAMETERS", "FILE", "SIZE", "ABSREL", "D1", "WEIGHTS"]]
    for name in names:
        row = [name, f"{_parameters(name) / 1e6:.1f}M", "-", "-", "-", "-", "-"]
        if tags := zoo_weights.tags(name):
            card = zoo_weights.card(name)
            metrics = card["metrics"]["per_image"]
            row[2:4] = f"{card['bytes'] / 1e6:.1f} MB", "{}x{}".format(*card["size"])
            row[4:] = f"{metrics['abs_rel']:.3f}", f"{metrics['d1']:.3f}", ", ".join(tags)
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells, last]))
    return 0


def _info(args: argparse.Namespace) -> int:
    name, blocks = args.name, []
    if name not in list_models() and zoo_weights.is_path(name, name):
        path = zoo_weights.find("", Path(name))
        name = zoo_weights.model_of(path)
        card = zoo_weights.read_metadata(path) | {"file": path.name, "bytes": path.stat().st_size}
        blocks.append([("weights", str(path)), *_facts(card)])
    else:
        get_builder(name)  # raises for an unknown name
        for index, tag in enumerate(zoo_weights.tags(name)):
            label = f"{tag} (default)" if index == 0 else tag
            blocks.append([("weights", label), *_facts(zoo_weights.card(name, tag))])
        if not blocks:
            blocks.append([("parameters", f"{_parameters(name):,}"), ("weights", "none yet")])
    summary = (inspect.getdoc(get_builder(name)) or "").split("\n\nArgs:")[0]
    print("\n\n".join([name, summary, *("\n".join(f"{k:<12} {v}" for k, v in block) for block in blocks)]))
    return 0


def _parameters(name: str) -> int:
    with torch.device("meta"):  # no memory and no initialization
        return sum(p.numel() for p in create_model(name, weights=None).parameters())


def _facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The main entries of a card as text; it may lack any of them."""
    facts = [("file", f"{card['file']}, {card['bytes'] / 1e6:.1f} MB")]
    if "parameters" in card:
        facts.append(("parameters", f"{card['parameters']:,}"))
    if "size" in card:
        facts.append(("size", "{}x{} (height x width), the working size".format(*card["size"])))
    if "depth_range" in card:
        facts.append(("depth", "{} to {} {}".format(*card["depth_range"], card.get("unit", "m"))))
    metrics = card.get("metrics", {})
    facts += [(key, _text(metrics[key])) for key in ("protocol", "per_image", "pooled") if key in metrics]
    for key in ("camera", "dataset", "recipe", "trained_on", "terms", "commit"):
        if key in card:
            facts.append((key, _text(card[key])))
    return facts


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _predict(args: argparse.Namespace) -> int:
    device = select_device(args.device)
    if args.fov is not None:
        focal_length(1, args.fov)  # raises for a bad angle
    paths, failures = find_images(args.inputs, args.recursive)
    if not paths:
        raise ValueError("; ".join(failures) or "no images")
    run = predictor(
        args.model, args.weights, device, size=args.size, batch_size=args.batch_size, flip=args.flip
    )
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: is a file, expected a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    for failure in failures:
        _complain(failure, 0)
    done, few, stems = 0, len(paths) <= FEW, unique_stems(paths)
    # disable=None: only on a terminal.
    with tqdm(total=len(paths), unit="image", disable=True if few else None) as bar:
        for start in range(0, len(paths), run.batch_size):
            batch = range(start, min(start + run.batch_size, len(paths)))
            images, focals, origins, loaded = [], [], [], []
            for index in batch:
                try:
                    image, exif = load_with_focal(paths[index])
                except (OSError, ValueError) as error:
                    failures.append(str(error))
                    with bar.external_write_mode(file=sys.stderr):
                        _complain(str(error), 0)
                    continue
                focal, origin = _camera(image, exif, args)
                images.append(image)
                focals.append(focal)
                origins.append(origin)
                loaded.append(index)
            for index, origin, prediction in zip(loaded, origins, run(images, focals), strict=True):
                written = []
                for kind in args.save:
                    suffix, write = OUTPUTS[kind]
                    written.append(args.out / (stems[index] + suffix))
                    write(prediction, written[-1], args)
                if few:
                    print(_describe(paths[index], prediction, origin, written))
                done += 1
            bar.update(len(batch))
    print(f"{done} {'image' if done == 1 else 'images'}: {', '.join(args.save)} in {args.out}{os.sep}")
    return _complain(f"{len(failures)} of {len(failures) + done} could not be read", 1) if failures else 0


def _camera(image: Pixels, exif: float | None, args: argparse.Namespace) -> tuple[Focal, str]:
    """The focal length of an image, and where it comes from."""
    if args.fov is not None:
        return focal_length(image.shape[1], args.fov), "given"
    if args.focal == "canonical" or (args.focal is None and exif is None):
        return "canonical", "canonical"
    return (exif, "EXIF") if args.focal is None else (args.focal, "given")


def _describe(path: Path, prediction: Prediction, origin: str, written: list[Path]) -> str:
    depth = prediction.depth
    near, middle, far = float(depth.min()), float(np.median(depth)), float(depth.max())
    return (
        f"{path}: {depth.shape[1]}x{depth.shape[0]}, near {near:.2f} m, median {middle:.2f} m, "
        f"far {far:.2f} m, focal length {prediction.focal_px:.0f} px ({origin}) -> {', '.join(map(str, written))}"
    )


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Return a name for the outputs of each path: its stem, or ``stem-2`` for the second path of the same stem.

    Names that differ only in case count as the same, as on some file systems.
    """
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 2
        while stem.casefold() in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
