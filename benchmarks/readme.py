"""Writes the tables of README.md and benchmarks/README.md from the weights' cards and benchmarks/results.

    python benchmarks/readme.py [--check]

--check writes nothing, and says which file is not what its sources say.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if not __package__:
    # Only depthzoo is installed; the tables also need the checkout's benchmarks.
    sys.path.insert(0, str(ROOT))

from benchmarks.measure.record import RESULTS  # noqa: E402
from benchmarks.report import accuracy_tables, latency_tables, reproduction_tables, training_tables  # noqa: E402
from benchmarks.report.measured import collect, place  # noqa: E402
from train.arguments import command  # noqa: E402

Table = Callable[[Path], str]


def demo(results: Path) -> str:
    """How far the demo found an exported file from PyTorch."""
    figures: dict[str, Any] = accuracy_tables.load(results, "demo.json")
    return (
        f"`{figures['model']}` in onnxruntime differs from PyTorch by {figures['parity']['max']:.0e} m at most; "
        "[how fast both are](#benchmarks) is measured apart."
    )


def gpu(results: Path) -> str:
    """On which GPUs what has been measured, and what has not."""
    found: dict[str, set[str]] = {}
    for question in ("latency", "training", "scaling", "predictor"):
        for run in collect(results, question):
            kind, name = place(run)
            if kind == "cuda":
                found.setdefault(question, set()).add(name)
    if not found:
        return (
            "GPU figures are not measured yet: `benchmarks/gpu.sh` measures them on a machine that has one."
        )
    known = "; ".join(f"{question} ({', '.join(sorted(names))})" for question, names in found.items())
    missing = [
        question for question in ("latency", "training", "scaling", "predictor") if question not in found
    ]
    return f"Measured on a GPU: {known}." + (f" Not measured yet: {', '.join(missing)}." if missing else "")


def pictures(pattern: str) -> Table:
    """What shows the plots of a name."""

    def show(results: Path) -> str:
        names = sorted(path.name for path in results.glob(pattern))
        return "\n".join(f"![{name}](results/{name})" for name in names) or "Nothing to draw yet."

    return show


DOCUMENTS: Mapping[str, Mapping[str, Table]] = {
    "README.md": {
        "zoo": accuracy_tables.zoo,
        "averaging": accuracy_tables.averaging,
        "distance": accuracy_tables.by_distance,
        "claims": reproduction_tables.claims,
        "demo": demo,
        "benchmarks": latency_tables.summary,
        "gpu": gpu,
    },
    "benchmarks/README.md": {
        "gpu": gpu,
        "accuracy plot": pictures("accuracy*.png"),
        "latency plot": pictures("latency*.png"),
        "latency": latency_tables.latency,
        "peers": latency_tables.peers,
        "predictor": latency_tables.predictor,
        "training plot": pictures("training*.png"),
        "training": training_tables.training,
        "largest batch": training_tables.largest_batch,
        "scaling plot": pictures("scaling*.png"),
        "scaling": training_tables.scaling,
        "loading": training_tables.loading,
        "export accuracy": accuracy_tables.export_accuracy,
        "overfit": accuracy_tables.overfit,
        "reproduction": reproduction_tables.reproduction,
        "reproduction picture": pictures("reproduction*.png"),
    },
}


def fill(text: str, tables: Mapping[str, Table], results: Path, name: str = "README.md") -> str:
    """``text`` with what lies between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew.

    Raises:
        ValueError: if a marker is missing.
    """
    for marker, table in tables.items():
        pattern = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        parts = pattern.split(text)
        if len(parts) != 4:
            raise ValueError(f"{name} must have <!-- {marker} --> and <!-- /{marker} --> once")
        before, opening, closing, after = parts
        text = f"{before}{opening}{table(results)}\n{closing}{after}"
    return text


def stale(root: Path, results: Path) -> dict[str, str]:
    """The documents that are not what their sources say, with their new text."""
    found = {}
    for name, tables in DOCUMENTS.items():
        before = (root / name).read_text(encoding="utf-8")
        after = fill(before, tables, results, name)
        if after != before:
            found[name] = after
    return found


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="readme.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a file would change"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Rewrites both files, or says which would change."""
    changed = stale(ROOT, RESULTS)
    for name, text in changed.items():
        if args.check:
            print(f"{name} is not what its sources say: run make readme", file=sys.stderr)
        else:
            (ROOT / name).write_text(text, encoding="utf-8")
            print(f"-> {name}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(command(parser(), run))
