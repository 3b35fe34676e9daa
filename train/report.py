"""What a run came to: curves, frames and figures, as one HTML file and one picture.

python -m train.report RUN [--data DIR]

writes RUN/report.html and RUN/report.png; without --data from metrics.json and config.toml alone.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depthzoo.predictor import select_device
from depthzoo.visualize import Pixels
from depthzoo.weights import read_metadata
from train.arguments import command
from train.cards import load_any
from train.curves import best_row, draw, number, series
from train.evaluate import default_protocol, evaluate
from train.inference import Predict, torch_predict
from train.report_html import page
from train.samples import PAD, ValidationSample, make_samples, ranked, strip
from train.shards import ShardDataset

TILE = 320


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder says of it.

    Attributes:
        name: of the folder.
        metrics: content of ``metrics.json``.
        config: text of ``config.toml``, or "".
        card: of ``model.safetensors``, or empty.
    """

    name: str
    metrics: dict[str, Any]
    config: str = ""
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each validation."""
        return [row for row in self.metrics.get("history") or [] if isinstance(row, dict)]

    @property
    def resumed_from(self) -> list[float]:
        """Steps at which the run was resumed."""
        return [number(step) for step in self.metrics.get("resumed_from") or []]


def read_run(run: Path) -> RunFacts:
    """What there is in a run's folder.

    Raises:
        ValueError: no ``metrics.json``, or one that is damaged.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{run} has no metrics.json; expected the folder of a run that has validated")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("history"), list):
        raise ValueError(f"{path} has no history; expected the metrics of a run")
    config, weights = run / "config.toml", run / "model.safetensors"
    return RunFacts(
        run.resolve().name,
        metrics,
        config.read_text(encoding="utf-8") if config.is_file() else "",
        read_metadata(weights) if weights.is_file() else {},
    )


def collect_samples(
    predict: Predict,
    dataset: ShardDataset,
    size: tuple[int, int],
    protocol: str = "eigen",
    rows: Tensor | None = None,
    each: int = 2,
) -> list[ValidationSample]:
    """The best, the median and the worst frames of a split, by AbsRel.

    Args:
        predict: see ``train.inference.torch_predict``.
        dataset: the split.
        size: working size (H, W).
        protocol: "eigen" or "full".
        rows: the figures of each frame, if ``evaluate`` has run already.
        each: how many of each; no frame is taken twice.

    Returns:
        At most ``3 * each``, the best first, then the median, then the worst.
    """
    if rows is None:
        _, rows = evaluate(predict, dataset, size, protocol, progress=False)
    order = ranked(rows)
    middle = max(0, (len(order) - each) // 2)
    # The worst and the best say more than the median where there are few frames.
    worst, best = order[::-1][:each], order[:each]
    median = order[middle : middle + each]
    roles: dict[int, str] = {}
    for role, indices in (("worst", worst), ("best", best), ("median", median)):
        for index in indices:
            roles.setdefault(index, role)
    chosen = [index for role in ("best", "median", "worst") for index in roles if roles[index] == role]
    return make_samples(predict, dataset, chosen, size, protocol, [roles[index] for index in chosen])


def write_report(
    run: Path,
    samples: Sequence[ValidationSample] = (),
    results: dict[str, dict[str, float]] | None = None,
    about: str = "",
) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.png`` into a run's folder; neither is ever seen half written.

    Args:
        run: the folder, with ``metrics.json``.
        samples: frames to show, from :func:`collect_samples`.
        results: what ``evaluate`` gave for the run's best weights; else the best row of the history is shown.
        about: what ``results`` are of, such as "95 val frames, eigen, 192x256".

    Returns:
        The two paths.

    Raises:
        ValueError: a folder without ``metrics.json``; matplotlib is not installed.
        OSError: it cannot be written.
    """
    facts = read_run(run)
    try:
        html = page(facts.name, facts.metrics, facts.config, facts.card, samples, results, about)
        picture = report_picture(facts, samples)
    except ModuleNotFoundError as error:
        raise ValueError(f"a report needs matplotlib: {error}") from None
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    paths = run / "report.html", run / "report.png"
    for path, content in zip(paths, (html.encode("utf-8"), buffer.getvalue()), strict=True):
        aside = path.with_name(path.name + ".part")
        try:
            aside.write_bytes(content)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
    return paths


def report_picture(facts: RunFacts, samples: Sequence[ValidationSample]) -> Pixels:
    """The curves, and below them one frame of each role: uint8 RGB."""
    curves, best = series(facts.history), best_row(facts.history)
    width = 4 * TILE + 5 * PAD
    step, steps = facts.metrics.get("step", "?"), facts.metrics.get("steps", "?")
    title = f"{facts.name}: step {step} of {steps}"
    if best:
        title += f", best validation AbsRel {best['abs_rel']:.3f} at step {best.get('step')}"
    marked = number(best.get("step")) if best else None
    parts = [draw(curves, width, title, facts.resumed_from, marked)]
    first: dict[str, ValidationSample] = {}
    for sample in samples:
        first.setdefault(sample.role, sample)
    parts += [strip(sample, TILE) for sample in first.values()]
    return np.concatenate(parts)


def report_run(
    run: Path, dataset: ShardDataset, device: torch.device, progress: bool = True
) -> tuple[Path, Path]:
    """Evaluates a run's best weights, as they are in its file, on a split, and writes the report.

    Raises:
        ValueError: no ``model.safetensors`` or ``metrics.json`` in the folder, a frame that cannot be decoded.
        OSError: the report cannot be written.
    """
    read_run(run)
    model = load_any(str(run)).to(device).eval()
    height, width = (model.card or {}).get("size", (480, 640))
    protocol = default_protocol(dataset)
    predict = torch_predict(model, device)
    results, rows = evaluate(predict, dataset, (height, width), protocol, progress)
    samples = collect_samples(predict, dataset, (height, width), protocol, rows)
    truth = dataset.info.get("truth", "as stored")
    about = f"{len(dataset)} {dataset.split} frames, {truth} truth, {protocol} protocol, {height}x{width}"
    return write_report(run, samples, results, about)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.report", description=__doc__.splitlines()[0])
    main.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    main.add_argument("--data", type=Path, metavar="DIR", help="its data set, for frames and both averagings")
    main.add_argument("--device", metavar="cpu|cuda")
    return main


def run(args: argparse.Namespace) -> int:
    if args.data:
        paths = report_run(args.run, ShardDataset(args.data, "val"), select_device(args.device))
    else:
        paths = write_report(args.run)
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
