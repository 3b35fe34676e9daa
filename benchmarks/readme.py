"""Writes the tables of README.md from the weights' cards and benchmarks/results; --check only compares."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depthzoo import weights
from depthzoo.registry import list_models

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def seen(card: dict[str, Any]) -> int:
    """Training images, those of the run that it started from included."""
    start = card.get("initialised_from")
    return int(card["trained_on"]["images"]) + (seen(start) if start else 0)


def zoo() -> str:
    """A row for each model and each of its tags."""
    counted = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))["models"]
    lines = [
        "| model | tag | parameters | GFLOP | file | AbsRel | RMSE | d1 | trained on |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    order = sorted(list_models(), key=lambda name: (not weights.tags(name), name))
    for name in order:
        count = counted[name]
        size = f"{count['parameters'] / 1e6:.1f}M | {count['gflop']:.1f}"
        for tag in weights.tags(name) or (None,):
            if tag is None:
                lines.append(f"| `{name}` | none yet | {size} | | | | | |")
                continue
            card = weights.card(name, tag)
            figures = card["metrics"]["per_image"]
            row = " | ".join(f"{figures[key]:.3f}" for key in ("abs_rel", "rmse", "d1"))
            origin = f"{card['trained_on']['device']}, {seen(card):,} images"
            lines.append(f"| `{name}` | `{tag}` | {size} | {card['bytes'] / 1e6:.1f} MB | {row} | {origin} |")
    return "\n".join(lines)


def averaging() -> str:
    """Both averagings, with and without flip, of every card."""
    lines = [
        "| model | tag | AbsRel | RMSE | RMSE pooled | d1 | AbsRel flip | RMSE flip | d1 flip |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in weights.models_with_weights():
        for tag in weights.tags(name):
            metrics = weights.card(name, tag)["metrics"]
            one, pooled, flip = metrics["per_image"], metrics["pooled"], metrics["flip"]["per_image"]
            values = [one["abs_rel"], one["rmse"], pooled["rmse"], one["d1"]]
            values += [flip["abs_rel"], flip["rmse"], flip["d1"]]
            lines.append(f"| `{name}` | `{tag}` | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def demo() -> str:
    """What the demo printed where the stored figures come from."""
    figures: dict[str, Any] = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    latency, machine = figures["latency_ms"], figures["machine"]
    height, width = latency["size"]
    eager, runtime = latency["eager torch"]["median"], latency["onnxruntime"]["median"]
    return (
        f"`{figures['model']}` at {height}x{width}, batch 1, {machine['threads']} CPU threads: eager PyTorch "
        f"{eager:.0f} ms, onnxruntime {runtime:.0f} ms ({eager / runtime:.1f} times as fast); largest difference "
        f"{figures['parity']['max']:.0e} m."
    )


TABLES: dict[str, Callable[[], str]] = {"zoo": zoo, "averaging": averaging, "demo": demo}


def fill(text: str) -> str:
    """``text`` with what lies between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    for name, table in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        parts = pattern.split(text)
        if len(parts) != 4:
            raise ValueError(f"README.md must have <!-- {name} --> and <!-- /{name} --> once")
        before, opening, closing, after = parts
        text = f"{before}{opening}{table()}\n{closing}{after}"
    return text


def main() -> int:
    """Rewrites README.md, or says whether that would change it."""
    parser = argparse.ArgumentParser(prog="readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = fill(before)
    if args.check:
        if before != after:
            print("README.md is not what its sources say: run make readme", file=sys.stderr)
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
