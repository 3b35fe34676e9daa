"""The command ``depthzoo predict``: from images, folders and videos to files."""

import argparse
import json
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from depthzoo.camera import focal_length
from depthzoo.images import find_images, load_with_focal
from depthzoo.models import list_models
from depthzoo.prediction import Prediction, Predictor, predictor, resolve_focal, select_device

FEW = 10  # more images than this get a progress bar, on a terminal
STDIN = Path("-")
WRITERS: dict[str, Callable[[Prediction, Path, argparse.Namespace], None]] = {
    "depth16": lambda p, path, _: p.save_depth16(path),
    "npy": lambda p, path, _: p.save_npy(path),
    "color": lambda p, path, args: p.save_color(path, args.colormap, args.near, args.far, legend=args.legend),
    "panel": lambda p, path, args: p.save_panel(path, colormap=args.colormap, near=args.near, far=args.far),
    "ply": lambda p, path, args: p.save_ply(path, args.stride or 1, up="y" if args.y_up else "-y"),
    "glb": lambda p, path, args: p.save_glb(path, args.stride),
}


class Task(NamedTuple):
    """An input, and the files to write for it by kind."""

    source: Path  # or STDIN
    outputs: dict[str, Path]
    video: bool

    def exists(self) -> bool:
        return all(path.exists() for path in self.outputs.values())


def predict(args: argparse.Namespace) -> int:
    """Run ``depthzoo predict`` with its parsed options, and return the exit code.

    Raises:
        ValueError, OSError, ImportError: if nothing can be done, or an output cannot be written.
    """
    device = select_device(args.device)
    tasks, failures = find_tasks(args)
    if not tasks:
        raise ValueError("; ".join(failures.values()))
    with Report(args, len(tasks) + len(failures)) as report, warnings.catch_warnings():
        warnings.showwarning = report.warned  # type: ignore[assignment]
        for text, message in failures.items():
            report.failed(text, message)
        todo = []
        for task in tasks:
            if args.skip_existing and task.exists():
                report.skipped(task)
            else:
                todo.append(task)
        try:
            if todo:
                run = _load(args, device)
                report.bar.unpause()  # without the time that loading took
                _predict_images(run, [task for task in todo if not task.video], args, report)
                _predict_videos(run, [task for task in todo if task.video], args, report)
        except KeyboardInterrupt:
            return report.interrupted()
        except (MemoryError, RuntimeError) as error:
            # On a CPU PyTorch raises a plain RuntimeError.
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
            if not full:
                raise
            advice = "try a smaller --batch-size, --size or image, or --device cpu"
            raise ValueError(f"out of memory; {advice}") from None
        return report.end()


def find_tasks(args: argparse.Namespace) -> tuple[list[Task], dict[str, str]]:
    """Return the images and videos that the inputs name, and what is wrong with other inputs."""
    roots: dict[Path, Path] = {}
    failures: dict[str, str] = {}
    seen = set()
    for text in args.inputs:
        paths, messages = ([STDIN], []) if text == "-" else find_images([text], args.recursive)
        if messages:
            failures[text] = messages[0]
        root = Path(text) if os.path.isdir(text) else Path(text).parent
        for path in paths:
            if path.resolve() not in seen:
                roots[path] = root
            seen.add(path.resolve())
    tasks = []
    for path, name in output_names(roots).items():
        video = path in args.videos
        kinds = args.video_kinds if video else args.kinds
        outputs = {kind: args.out / f"{name}{end}" for kind, end in kinds.items()}
        tasks.append(Task(path, outputs if args.file is None else args.file, video))
    return tasks, failures


def output_names(roots: dict[Path, Path]) -> dict[Path, str]:
    """Return a name for the outputs of each path: the path without its suffix, relative to the folder that was named.

    With several such folders it is relative to the one that has them all. Where two names would be the same, also on a
    file system that ignores case, the suffixes are kept.

    Args:
        roots: by the path of each image the folder that was named, or that of a file that was named.
    """
    folders = {os.path.abspath(root) for path, root in roots.items() if path != STDIN}
    common = os.path.commonpath(folders) if folders else ""
    names = {path: Path("stdin") if path == STDIN else Path(os.path.relpath(path, common)) for path in roots}
    stems = {path: str(name.with_suffix("")) for path, name in names.items()}
    count = Counter(stem.casefold() for stem in stems.values())
    return {path: stem if count[stem.casefold()] == 1 else str(names[path]) for path, stem in stems.items()}


def _load(args: argparse.Namespace, device: torch.device) -> Predictor:
    name, weights = args.model, args.weights
    if name is not None and name not in list_models() and weights != "DEFAULT" and os.path.exists(name):
        raise ValueError(f"--model {name}: is weights itself; leave out --weights {weights}")
    return predictor(name, weights, device, size=args.size, batch_size=args.batch_size, flip=args.flip)


def _predict_images(
    run: Predictor, tasks: Sequence[Task], args: argparse.Namespace, report: "Report"
) -> None:
    for start in range(0, len(tasks), run.batch_size):
        loaded, images, focals = [], [], []
        for task in tasks[start : start + run.batch_size]:
            try:
                image, exif = load_with_focal(sys.stdin.buffer if task.source == STDIN else task.source)
            except (OSError, ValueError) as error:
                report.failed(str(task.source), str(error))
                continue
            focal = args.focal if args.fov is None else focal_length(image.shape[1], args.fov)
            loaded.append(task)
            images.append(image)
            focals.append(resolve_focal(focal, exif, image.shape[:2]))
        predictions = run(images, [pixels for pixels, _ in focals])
        for task, prediction, (_, origin) in zip(loaded, predictions, focals, strict=True):
            try:
                for kind, path in task.outputs.items():
                    WRITERS[kind](prediction, path, args)
            except ValueError as error:  # as of a --near beyond all depth of this image
                report.failed(str(task.source), f"{task.source}: {error}")
            else:
                report.predicted(task, prediction, origin)


def _predict_videos(
    run: Predictor, tasks: Sequence[Task], args: argparse.Namespace, report: "Report"
) -> None:
    if not tasks:
        return
    from depthzoo.video import predict_video

    scale = {"colormap": args.colormap, "near": args.near, "far": args.far}
    camera = {"focal_px": args.focal, "fov": args.fov}
    progress = False if args.quiet else None
    for task in tasks:
        try:
            for kind, path in task.outputs.items():
                side = kind == "panel"
                frames = predict_video(
                    run, task.source, path, **scale, **camera, side_by_side=side, progress=progress
                )
        except ValueError as error:
            report.failed(str(task.source), str(error))
        else:
            report.filmed(task, frames)


class Report:
    """What is printed: a line per input, a progress bar for many, and a summary."""

    def __init__(self, args: argparse.Namespace, total: int) -> None:
        self.args, self.total = args, total
        self.done = self.left = self.bad = 0
        # disable=None: only on a terminal.
        self.bar = tqdm(total=total, unit="image", disable=True if args.quiet or total <= FEW else None)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def predicted(self, task: Task, prediction: Prediction, origin: str) -> None:
        height, width = prediction.depth.shape
        metres = {"near": prediction.near, "median": prediction.median, "far": prediction.far}
        text = ", ".join(f"{name} {value:.2f} m" for name, value in metres.items())
        self._print(
            f"{width}x{height}, {text}, focal length {prediction.focal_px:.0f} px ({origin})",
            task,
            width=width,
            height=height,
            **{name: None if math.isnan(value) else round(value, 4) for name, value in metres.items()},
            focal_px=round(prediction.focal_px or 0, 2),
            focal_source=origin,
        )
        self.done += 1
        self.bar.update()

    def filmed(self, task: Task, frames: int) -> None:
        self._print(f"{frames} {'frame' if frames == 1 else 'frames'}", task, frames=frames)
        self.done += 1
        self.bar.update()

    def skipped(self, task: Task) -> None:
        if self.args.json:
            self._print("", task, skipped=True)
        self.left += 1
        self.bar.update()

    def complain(self, message: str) -> None:
        with self.bar.external_write_mode(file=sys.stderr):
            print(f"depthzoo: {' '.join(message.split())}", file=sys.stderr)

    def warned(self, message: Warning | str, *_: object) -> None:
        self.complain(f"warning: {str(message).partition('; depthzoo.')[0]}")  # without what to do in Python

    def failed(self, source: str, message: str) -> None:
        self.complain(message)
        if self.args.json:
            self._line(json.dumps({"input": source, "error": message}))
        self.bad += 1
        self.bar.update()

    def _print(self, text: str, task: Task, **facts: Any) -> None:
        outputs = {kind: str(path) for kind, path in task.outputs.items()}
        if self.args.json:
            self._line(json.dumps({"input": str(task.source), "outputs": outputs, **facts}))
        elif not self.args.quiet:
            # A file's name chosen by the user may not tell what is in it.
            paths = [f"{path} ({kind})" if self.args.file else path for kind, path in outputs.items()]
            self._line(f"{task.source}: {text} -> {', '.join(paths)}")

    def _line(self, text: str) -> None:
        with self.bar.external_write_mode(file=sys.stdout):
            print(text, flush=True)  # at once: the reader may be a program, or gone

    def interrupted(self) -> int:
        self.bar.close()
        self.complain(f"interrupted after {self.done} of {self.total}; all files written are complete")
        return 130

    def end(self) -> int:
        self.bar.close()
        if self.total > 1 or self.left:
            skipped = f", {self.left} skipped, whose outputs exist" if self.left else ""
            if not (self.args.json or self.args.quiet):
                self._line(f"{self.done} of {self.total} predicted{skipped}: {self.args.out}{os.sep}")
        if self.bad and self.total > 1:
            self.complain(f"{self.bad} of {self.total} failed")
        return 0 if not self.bad else 1 if self.done or self.left else 2
