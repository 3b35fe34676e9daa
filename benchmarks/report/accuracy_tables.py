"""The generated tables of accuracy: the zoo, ways of averaging, exported files, learning by heart."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report.markdown import shape, size, sources, table
from depthzoo import weights
from depthzoo.models import list_models

FIGURES = ("abs_rel", "rmse", "d1")


def load(results: Path, name: str) -> dict[str, Any]:
    """A result file; empty where there is none."""
    path = results / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def seen(card: dict[str, Any]) -> int:
    """Training images, those of the run that it started from included."""
    start = card.get("initialised_from")
    return int(card["trained_on"]["images"]) + (seen(start) if start else 0)


def zoo(results: Path) -> str:
    """A row for each model and each of its tags."""
    counted = load(results, "architectures.json")["models"]
    lines = []
    for name in sorted(list_models(), key=lambda name: (not weights.tags(name), name)):
        counts = [f"{counted[name]['parameters'] / 1e6:.1f}M", f"{counted[name]['gflop']:.1f}"]
        for tag in weights.tags(name):
            card = weights.card(name, tag)
            figures = [f"{card['metrics']['per_image'][key]:.3f}" for key in FIGURES]
            origin = f"{card['trained_on']['device']}, {seen(card):,} images"
            lines.append(
                [
                    f"`{name}`",
                    f"`{tag}`",
                    *counts,
                    f"{card['bytes'] / 1e6:.1f} MB",
                    shape(card["size"]),
                    *figures,
                    origin,
                ]
            )
        if not weights.tags(name):
            lines.append([f"`{name}`", "none yet", *counts, *[""] * 6])
    columns = ["parameters", "GFLOP", "file", "works at", "AbsRel", "RMSE", "d1", "trained on"]
    text = table(["model", "tag", *columns], lines, left=2)
    return text.replace("|--:|\n", "|---|\n", 1)  # the last column is words


def averaging(results: Path) -> str:
    """Both averagings, with and without flip, of every card."""
    lines = []
    for name in list_models(pretrained=True):
        for tag in weights.tags(name):
            metrics = weights.card(name, tag)["metrics"]
            one, pooled, flip = metrics["per_image"], metrics["pooled"], metrics["flip"]["per_image"]
            values = [one["abs_rel"], one["rmse"], pooled["rmse"], one["d1"]]
            values += [flip[key] for key in FIGURES]
            lines.append([f"`{name}`", f"`{tag}`", *(f"{value:.3f}" for value in values)])
    columns = ["AbsRel", "RMSE", "RMSE pooled", "d1", "AbsRel flip", "RMSE flip", "d1 flip"]
    return table(["model", "tag", *columns], lines, left=2)


def by_distance(results: Path) -> str:
    """AbsRel and bias by true distance, of every card that says."""
    found = {
        (name, tag): card["failures"]["by_distance"]
        for name in list_models(pretrained=True)
        for tag in weights.tags(name)
        if "failures" in (card := weights.card(name, tag))
    }
    if not found:
        return "Not measured yet."
    bands = next(iter(found.values()))
    lines: list[list[Any]] = [["share of the pixels", "", *(f"{band['share']:.0%}" for band in bands)]]
    for (name, tag), known in found.items():
        cells = [f"{band['abs_rel']:.3f} ({band['bias']:+.0%})" for band in known]
        lines.append([f"`{name}`", f"`{tag}`", *cells])
    columns = ["{:g} to {:g} m".format(*band["metres"]) for band in bands]
    return table(["model", "tag", *columns], lines, left=2)


def export_accuracy(results: Path) -> str:
    """AbsRel of each precision on the test split, and how far it moved from PyTorch's."""
    models = load(results, "export_accuracy.json").get("models", {})
    if not models:
        return "Not measured yet."
    lines = []
    for name, report in models.items():
        for precision, row in sorted(report["rows"].items(), key=lambda each: each[0] != "torch"):
            moved = f"{row['moved']:+.2%} (limit {row['limit']:.1%})" if "moved" in row else ""
            figures = [f"{row[key]:.4f}" for key in FIGURES]
            kind = "PyTorch" if precision == "torch" else f"ONNX {precision}"
            lines.append([f"`{name}`", kind, shape(report["size"]), *figures, moved, size(row.get("bytes"))])
    columns = ["model", "run as", "works at", "AbsRel", "RMSE", "d1", "AbsRel moved", "file"]
    return f"{table(columns, lines, left=3)}\n\n{sources(models.values())}"


def overfit(results: Path) -> str:
    """AbsRel that each architecture reached on eight frames."""
    stored = load(results, "overfit.json")
    models = stored.get("models", {})
    if not models:
        return "Not measured yet."
    lines = [
        [
            f"`{name}`",
            shape(row["size"]),
            row["steps"],
            f"{row['lr']:g}",
            f"{row['abs_rel']:.4f}",
            f"{row['d1']:.4f}",
        ]
        for name, row in sorted(models.items(), key=lambda each: each[1]["abs_rel"])
    ]
    columns = ["model", "size", "steps", "rate", "AbsRel", "d1"]
    return f"{table(columns, lines, left=2)}\n\n{sources(models.values())}"
