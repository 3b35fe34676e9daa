"""What there is to say about the models: a table of all, and one in detail, out of docstrings and cards."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from depthzoo import weights
from depthzoo.registry import MODELS, closest, create_model, list_models


def table(pattern: str | None = None) -> str:
    """One line a model: parameters, then of the default weights ("-" without) the file's size, the working size and
    the metrics, then all tags, default first.

    Raises:
        ValueError: nothing matches the shell-style ``pattern``; has the closest names.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}: {closest(pattern or '', list_models())}")
    rows = [("NAME", "PARAMETERS", "FILE", "SIZE", "ABSREL", "D1", "WEIGHTS")]
    for name in names:
        tags = weights.tags(name)
        card = weights.card(name) if tags else {}
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


def describe(name: str) -> str:
    """What a model is (its docstring's first part) and what the cards of its weights say.

    Args:
        name: of a model; or a path to a weights file or a run's folder, of whose model and card it is then.

    Raises:
        ValueError: unknown name, with the closest ones, or a file that cannot be read.
    """
    if name not in list_models() and weights.is_path(name, name):
        path = weights.find("", Path(name))
        model = weights.model_of(path)
        return "\n\n".join([model, _summary(model), _lines([("weights", str(path)), *_facts(_card(path))])])
    blocks = [name, _summary(name)]
    tags = weights.tags(name)
    if not tags:
        blocks.append(_lines([("parameters", f"{_parameters(name):,}"), ("weights", "none yet")]))
    for index, tag in enumerate(tags):
        label = f"{tag} (default)" if index == 0 else tag
        blocks.append(_lines([("weights", label), *_facts(weights.card(name, tag))]))
    return "\n\n".join(blocks)


def _summary(name: str) -> str:
    return (inspect.getdoc(MODELS.get(name)) or "").split("\n\nArgs:")[0]


def _card(path: Path) -> dict[str, Any]:
    return weights.read_metadata(path) | {"file": path.name, "bytes": path.stat().st_size}


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
