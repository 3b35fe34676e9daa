"""The command ``depthzoo``: its options, its messages and its exit codes.

Only the standard library is imported here, so that help, the version and wrong usage need no PyTorch. What the commands
do is in ``cli_info`` and ``cli_predict``.
"""

import argparse
import contextlib
import io
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from depthzoo import __version__
from depthzoo.errors import WeightsError

REPOSITORY = "https://github.com/org/depthzoo"
# What is written for an image, by kind: the end of the file's name. Of a video the pictures, as .mp4.
KINDS = {
    "depth16": ".depth.png",
    "npy": ".npy",
    "color": ".color.png",
    "panel": ".panel.png",
    "ply": ".ply",
    "glb": ".glb",
}
DEFAULT_KINDS = ("depth16", "color")
VIDEO_KINDS = {"color": ".color.mp4", "panel": ".panel.mp4"}
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
# Kinds of a file given by --out. The end of its name decides, the longest first; any other picture is in color.
FILE_KINDS = {end: kind for kind, end in KINDS.items()} | dict.fromkeys((".png", ".jpg", ".jpeg"), "color")
VIDEO_FILE_KINDS = {".panel.mp4": "panel"} | dict.fromkeys((".mp4", ".mov", ".mkv"), "color")
# Those of depthzoo.colormaps, which needs NumPy; a test compares them.
COLORMAPS = ("gray", "gray_r", "magma", "magma_r", "turbo", "turbo_r")

DESCRIPTION = "Depth in metres from one image."
EPILOG = f"""\
depthzoo predict photo.jpg writes out/photo.depth.png, in millimetres, and
out/photo.color.png. depthzoo COMMAND --help describes a command.
{REPOSITORY}
"""
PREDICT = "Predict the depth of images and videos, in metres, at their own size."
PREDICT_EPILOG = """\
kinds for --save:
  depth16  16-bit PNG of millimetres, 0 is no depth; looks black in most viewers
  npy      NumPy array, float32 (height, width), metres
  color    PNG with near and far in the colors of --colormap
  panel    PNG with image and depth side by side, and a scale in metres
  ply      colored point cloud, metres
  glb      textured surface for browsers, phones and 3D programs; needs trimesh

Outputs are named after their input and mirror its folders: with -r,
photos/day1/a.jpg in photos becomes out/day1/a.depth.png. A video is saved as
color (the default) or panel, as out/NAME.color.mp4, with one color scale.
Videos in folders are not taken; name them.

--json prints input, outputs, width, height, near, median, far (metres),
focal_px and focal_source of an image; input, outputs and frames of a video;
skipped or error where there is no more to say.

exit codes: 0 done; 1 some inputs failed; 2 wrong usage, or nothing could be
done; 130 interrupted

examples:
  depthzoo predict photo.jpg
  depthzoo predict photo.jpg -o photo.ply --stride 2
  depthzoo predict -r holiday/ --out depths --save npy --skip-existing
  depthzoo predict clip.mp4 --near 0.5 --far 5
  curl -sL URL | depthzoo predict - -o photo.panel.png
  depthzoo predict photos/*.jpg --json | jq .median
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; by default those of the process.

    Returns:
        The exit code: 0 done; 1 some inputs failed; 2 wrong usage, or nothing could be done;
        130 interrupted; 141 the reader of the output is gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be anything
    try:
        parser = _parser()
        # Options that only the exporter knows are left over.
        args, rest = parser.parse_known_args(argv)
        if rest and args.run is not _export:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = rest
        if args.run is None:
            parser.print_help()
            return 0
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except WeightsError as error:
        return _complain(f"error: {error.problem}", 2)  # without the advice, which is Python's
    except (ValueError, OSError, ImportError) as error:
        return _complain(f"error: {error}", 2)


@contextlib.contextmanager
def _stopped_at_once() -> Iterator[None]:
    """End the process at Ctrl-C. Of the packages imported meanwhile some swallow a KeyboardInterrupt."""

    def stop(*_: object) -> None:
        os._exit(_complain("interrupted", 130))

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _complain(message: str, code: int = 0) -> int:
    print("depthzoo: " + " ".join(message.split()), file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"depthzoo: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="depthzoo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"depthzoo {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    text = "List the models, with the size and the accuracy of their weights."
    command = commands.add_parser("list", help="list the models and their accuracy", description=text)
    command.add_argument("pattern", nargs="?", metavar="PATTERN", help="shell-style, as in '*resnet*'")
    command.set_defaults(run=_list)

    text = (
        "Describe a model: what it is for, how accurate it is, where it fails, and the terms of its weights."
    )
    command = commands.add_parser("info", help="describe one model and its weights", description=text)
    command.add_argument("name", metavar="NAME|FILE|RUN", help="a model, a .safetensors file or a run folder")
    command.add_argument("--json", action="store_true", help="print the whole card as JSON")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "predict",
        help="predict the depth of images and videos",
        description=PREDICT,
        epilog=PREDICT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_predict_options(command)
    command.set_defaults(run=_predict)

    command = commands.add_parser("export", help="export a model to one ONNX file", add_help=False)
    command.set_defaults(run=_export)
    return parser


def _add_predict_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image, folder of images or video; - is an image on stdin")
    add("-r", "--recursive", action="store_true", help="descend into the folders of a folder")

    add = command.add_argument_group("output").add_argument
    out_help = "folder to write to (out); for one input also a file, whose name ends as that of a kind"
    add("-o", "--out", default="out", metavar="PATH", help=out_help)
    kinds = f"any of {', '.join(KINDS)} ({','.join(DEFAULT_KINDS)})"
    add("--save", type=_kinds, action="extend", metavar="KIND,...", help=kinds)
    add("--skip-existing", action="store_true", help="leave out inputs whose outputs are all there")
    add("--json", action="store_true", help="print one JSON object per input, in one line")
    add("-q", "--quiet", action="store_true", help="print nothing but errors (and --json)")

    add = command.add_argument_group("model").add_argument
    add("--model", metavar="NAME|FILE|RUN", help="see depthzoo list, which marks the default")
    weights = "see depthzoo info NAME (the model's default)"
    add("--weights", default="DEFAULT", metavar="TAG|FILE|RUN", help=weights)
    add("--device", type=_device, metavar="cpu|cuda|mps", help="(CUDA if there is a GPU, else the CPU)")
    add("--batch-size", type=_at_least_one, metavar="N", help="images predicted together (CPU 1, else 8)")
    add("--size", type=_size, metavar="HxW", help="working size of the model (that of the weights)")
    add("--flip", action="store_true", help="average with the mirrored image: a little better, half as fast")

    group = command.add_argument_group("camera", "Depth in metres scales with the focal length.")
    add = group.add_mutually_exclusive_group().add_argument
    focal = "focal length in pixels, or that of the weights' camera (that in EXIF, else canonical)"
    add("--focal", type=_focal, metavar="PX|canonical", help=focal)
    add("--fov", type=_degrees, metavar="DEGREES", help="horizontal field of view instead")

    add = command.add_argument_group("drawing").add_argument
    add(
        "--colormap",
        choices=COLORMAPS,
        default="turbo_r",
        metavar="NAME",
        help=f"{', '.join(COLORMAPS)} (%(default)s)",
    )
    scale = "of the colors, in metres (1st and 99th percentile of each image)"
    add("--near", type=_metres, metavar="M", help=f"near end {scale}")
    add("--far", type=_metres, metavar="M", help="far end")
    add("--legend", action="store_true", help="draw a scale in metres below the colors")
    add(
        "--stride",
        type=_at_least_one,
        metavar="N",
        help="of ply and glb: every Nth pixel (ply 1, glb by size)",
    )
    add("--y-up", action="store_true", help="of ply: y up, as most viewers show it (y down, as in OpenCV)")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _focal(text: str) -> float | Literal["canonical"]:
    if text == "canonical":
        return "canonical"
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected pixels above 0, or canonical, not {text!r}")
    return _number(text)


def _degrees(text: str) -> float:
    if not 1 < _number(text) < 179:
        raise argparse.ArgumentTypeError(f"expected degrees between 1 and 179, not {text!r}")
    return _number(text)


def _metres(text: str) -> float:
    if not 0 <= _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected metres, not {text!r}")
    return _number(text)


def _at_least_one(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
    return int(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"unknown device {text!r}: there are cpu, cuda, cuda:N and mps")
    return text


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})[xX](\d{2,4})", text)
    if not match or min(int(match[1]), int(match[2])) < 32:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH from 32 to 9999 as in 480x640, not {text!r}")
    return int(match[1]), int(match[2])


def _kinds(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"unknown kind {kind!r}: there are {', '.join(KINDS)}")
    if not kinds:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(KINDS)}")
    return kinds


def _list(args: argparse.Namespace) -> int:
    with _stopped_at_once():
        from depthzoo.cli_info import print_models

    print_models(args.pattern)
    return 0


def _info(args: argparse.Namespace) -> int:
    with _stopped_at_once():
        from depthzoo.cli_info import print_info

    print_info(args.name, args.json)
    return 0


def _predict(args: argparse.Namespace) -> int:
    if args.near is not None and args.far is not None and args.near >= args.far:
        raise ValueError(f"--near {args.near:g} must be below --far {args.far:g}")
    _check_inputs(args.inputs)
    args.kinds = {kind: KINDS[kind] for kind in args.save or DEFAULT_KINDS}
    args.video_kinds = {kind: VIDEO_KINDS[kind] for kind in args.save or ("color",) if kind in VIDEO_KINDS}
    args.videos = [Path(text) for text in args.inputs if text.lower().endswith(VIDEOS)]
    if args.videos and not args.video_kinds:
        raise ValueError(
            f"{args.videos[0]}: a video is saved as color or panel, not as {', '.join(args.save)}"
        )
    args.file = _file_by_kind(args)
    args.out = Path(args.out)
    with _stopped_at_once():
        from depthzoo.cli_predict import predict

    return predict(args)


def _file_by_kind(args: argparse.Namespace) -> dict[str, Path] | None:
    """The file that --out names, by the kind that its name chooses; None if --out is a folder."""
    path, out = Path(args.out), f"--out {args.out}"
    if path.is_dir() or args.out.endswith(("/", os.sep)) or not (path.suffix or path.is_file()):
        return None
    kinds = VIDEO_FILE_KINDS if args.inputs[0].lower().endswith(VIDEOS) else FILE_KINDS
    kind = next((kind for end, kind in kinds.items() if path.name.lower().endswith(end)), None)
    if kind is None:
        ends = ", ".join(kinds)
        raise ValueError(f"{out}: expected a folder (a new one with a dot ends in /), or a file in {ends}")
    if len(args.inputs) > 1 or os.path.isdir(args.inputs[0]):
        raise ValueError(f"{out}: is a file, which takes one image; for several give a folder")
    if args.save:
        raise ValueError(
            f"{out}: the name of a file chooses what is saved ({kind}); leave out --save, or give a folder"
        )
    if path.is_file() and args.inputs[0] != "-" and path.samefile(args.inputs[0]):
        raise ValueError(f"{out}: is the input itself")
    return {kind: path}


def _check_inputs(inputs: Sequence[str]) -> None:
    """Raise at once if there is no input at all, as after a typing error, rather than once PyTorch is loaded."""
    for text in inputs:
        if text.startswith(("http://", "https://")):
            raise ValueError(f"{text}: URLs are not read; try: curl -sL URL | depthzoo predict -")
    if not any(text == "-" or os.path.lexists(text) for text in inputs):
        raise ValueError("; ".join(f"{text}: no such file or folder" for text in inputs[:3]))


def _export(args: argparse.Namespace) -> int:
    script = Path(__file__).resolve().parents[1] / "export" / "to_onnx.py"
    if not script.is_file():
        raise ValueError(
            f"only a clone has the exporter: git clone {REPOSITORY} && pip install -e './depthzoo[export]'"
        )
    with subprocess.Popen([sys.executable, str(script), *args.rest]) as process:
        while True:
            # Ctrl-C reaches the exporter too, which ends and says so.
            with contextlib.suppress(KeyboardInterrupt):
                code = process.wait()
                return code if code >= 0 else 128 - code  # ended by a signal
