"""The commands ``depthzoo list`` and ``depthzoo info``: models and their cards, as text."""

import inspect
import json
import math
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from depthzoo import weights as zoo_weights
from depthzoo.errors import suggest
from depthzoo.models import create_model, get_builder, list_models
from depthzoo.prediction import DEFAULT_MODEL

LEGEND = """
*       model that depthzoo predict uses by default
size    height x width that the weights work at; predict resizes images to about it, and the depth back
AbsRel  mean of |predicted - true| / true; lower is better
d1      fraction of pixels predicted within a factor of 1.25 of the truth; higher is better
-       no trained weights yet

depthzoo info NAME says more about a model."""


def print_models(pattern: str | None) -> None:
    """Print a table of the models, those with weights first.

    Raises:
        ValueError: if no name matches the pattern; the message suggests the closest ones.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}: {suggest(str(pattern), list_models())}")
    rows = [["", "model", "weights", "parameters", "file", "size", "AbsRel", "d1"]]
    protocols = set()
    for name in sorted(names, key=lambda name: not zoo_weights.tags(name)):
        row = ["*" if name == DEFAULT_MODEL else "", name, "-", "", "-", "-", "-", "-"]
        if tags := zoo_weights.tags(name):
            card = zoo_weights.card(name)
            metrics = card["metrics"]["per_image"]
            protocols.add(card["metrics"].get("protocol"))
            row[2:4] = ", ".join(tags), _millions(card["parameters"])
            row[4:] = _megabytes(card), _size(card), f"{metrics['abs_rel']:.3f}", f"{metrics['d1']:.3f}"
        else:
            row[3] = _millions(_parameters(name))
        rows.append(row)
    print(_table(rows, left=3))
    print(LEGEND)
    if len(protocols) == 1 and (protocol := protocols.pop()):
        print(f"AbsRel and d1 on {protocol}.")


def print_info(source: str, as_json: bool = False) -> None:
    """Print what a model is and what its weights are worth.

    Args:
        source: a model's name, a .safetensors file or a run folder.
        as_json: print the cards of the weights as they are, one JSON list.

    Raises:
        ValueError: for an unknown name, or a file that cannot be read or does not say which model it is for.
    """
    if source not in list_models() and zoo_weights.is_path(source, source):
        path = zoo_weights.find("", Path(source))
        name = zoo_weights.model_of(path)
        cards = {str(path): zoo_weights.read_metadata(path) | {"bytes": path.stat().st_size}}
    else:
        name = source
        get_builder(name)  # raises for an unknown name
        cards = {}
        for tag in zoo_weights.tags(name):
            card = zoo_weights.card(name, tag)
            # Outside a checkout the card is short; a downloaded file holds all of it.
            cached = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / card["file"]
            if cached.is_file():
                card = zoo_weights.read_metadata(cached) | card
            cards[f"{tag}{'' if cards else ' (the default)'}, {card['file']}"] = card
    if as_json:
        print(json.dumps(list(cards.values()), indent=2))
        return
    width = min(max(shutil.get_terminal_size().columns, 80), 110)
    summary = (inspect.getdoc(get_builder(name)) or "").split("\n\nArgs:")[0].replace("``", "")
    print(f"{name}\n")
    for paragraph in summary.split("\n\n"):
        print(*_wrapped(paragraph, width), sep="\n", end="\n\n")
    if not cards:
        print(f"{_parameters(name):,} parameters; no trained weights yet")
    for label, card in cards.items():
        try:
            facts = list(_facts(card))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            facts = [("card", "has entries that depthzoo did not write; --json prints it")]
        for key, text in [("weights", f"{label}, {_megabytes(card)}"), *facts]:
            lines = [line for each in text.splitlines() for line in _wrapped(each, width - 14)]
            print(f"{key:<12}  " + ("\n" + " " * 14).join(lines))
        print()


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text, in which paths and names stay whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _facts(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of a card in words; it may lack any of them."""
    if "parameters" in card:
        yield "parameters", f"{card['parameters']:,}"
    if card.get("arguments"):
        yield "built with", ", ".join(f"{key}={value}" for key, value in card["arguments"].items())
    versions = card.get("versions", {})
    made = [f"{key} {versions[key]}" for key in ("depthzoo", "torch") if key in versions]
    if card.get("commit"):
        made.append(f"commit {card['commit'][:8]}")
    if made:
        yield "made with", ", ".join(made)
    if trained := _training(card):
        yield "trained on", trained
    if "size" in card:
        yield (
            "input",
            f"an image of any size; works at {_size(card)} (height x width), to which predict resizes",
        )
    if "depth_range" in card:
        yield "output", "depth in {2}, {0:g} to {1:g}".format(*card["depth_range"], card.get("unit", "m"))
    if camera := card.get("camera"):
        yield "camera", _camera(camera)
    yield from _accuracy(card)
    # The camera and the terms have lines of their own.
    if limits := [text for text in card.get("limits", ()) if not text.startswith(("One camera", "Terms of"))]:
        yield "limits", "\n".join(f"- {text}" for text in limits)
    if card.get("terms"):
        yield "terms", _each_once(card["terms"])
    elif "sha256" in card:
        yield "terms", "of the training data: shown here once predict has downloaded the file"


def _accuracy(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    metrics, failures = card.get("metrics", {}), card.get("failures", {})
    if "per_image" in metrics:
        yield "accuracy", _metrics(metrics["per_image"])
    if "per_image" in metrics.get("flip", {}):
        yield "with --flip", _metrics(metrics["flip"]["per_image"])
    if metrics.get("protocol"):
        yield "measured on", metrics["protocol"]
    if card.get("sizes"):
        yield (
            "by size",
            ", ".join(f"{size} AbsRel {row['abs_rel']:.3f}" for size, row in card["sizes"].items()),
        )
    if bands := failures.get("by_distance"):
        rows = [["true distance", "share of pixels", "AbsRel", "too far (+) or near (-)"]]
        for band in bands:
            near, far = band["metres"]
            error = f"{band['abs_rel']:.3f}", f"{band['bias']:+.0%}"
            rows.append([f"{near:g} to {far:g} m", f"{band['share']:.0%}", *error])
        yield "by distance", _table(rows, left=1)
    if spread := failures.get("abs_rel"):
        words = {
            "best_tenth": "a tenth of the images below",
            "median": "half below",
            "worst_tenth": "a tenth above",
        }
        yield (
            "by image",
            "AbsRel: " + ", ".join(f"{words[key]} {spread[key]:.3f}" for key in words if key in spread),
        )
    if worst := failures.get("worst"):
        yield "worst images", ", ".join(f"{row['frame']} (AbsRel {row['abs_rel']:.2f})" for row in worst)


def _metrics(values: dict[str, float]) -> str:
    return f"AbsRel {values['abs_rel']:.3f}, RMSE {values['rmse']:.3f} m, d1 {values['d1']:.3f}"


def _training(card: dict[str, Any]) -> str:
    """Data sets and number of images, of the weights and of those that they started from."""
    chain = [card]
    while chain[-1].get("initialised_from"):
        chain.append(chain[-1]["initialised_from"])
    sets = [data for each in chain for data in (each.get("dataset") or {}, *(each.get("mixed_with") or ()))]
    sources = dict.fromkeys(_source(data) for data in sets if data.get("source"))
    runs = [each["trained_on"] for each in chain if each.get("trained_on")]
    parts = [", ".join(sources)] if sources else []
    if runs:
        devices = ", ".join(dict.fromkeys(str(run["device"]) for run in runs))
        times = f" in {len(runs)} runs" if len(runs) > 1 else ""
        parts.append(f"{sum(run['images'] for run in runs):,} images seen{times}, on {devices}")
    return "; ".join(parts)


def _source(data: dict[str, Any]) -> str:
    teacher = (data.get("teacher") or {}).get("model")
    return f"{data['source']}" + (f" by {teacher}" if teacher else "")


def _camera(camera: dict[str, Any]) -> str:
    focal, width = camera["focal_px"], camera["at_width"]
    degrees = 2 * math.degrees(math.atan(width / 2 / focal))
    return (
        f"{camera['name']}, focal length {focal:g} px at a width of {width} px ({degrees:.0f} degrees wide); "
        "for another: --focal or --fov"
    )


def _each_once(terms: str) -> str:
    """The clauses of some terms without those that repeat an earlier one, or only say whose it is."""
    clauses: list[str] = []
    for clause in terms.split("; "):
        if not any(clause.endswith(earlier) for earlier in clauses):
            clauses.append(clause)
    return "; ".join(clauses)


def _parameters(name: str) -> int:
    with torch.device("meta"):  # no memory and no initialization
        return sum(p.numel() for p in create_model(name, weights=None).parameters())


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f}M"


def _megabytes(card: dict[str, Any]) -> str:
    return f"{card['bytes'] / 1e6:.1f} MB"


def _size(card: dict[str, Any]) -> str:
    return "{}x{}".format(*card["size"])


def _table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows in columns; the first ``left`` ones are aligned to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
