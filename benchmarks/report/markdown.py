"""Numbers, tables and sources as the generated parts of the documentation write them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report.measured import place


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Rows under their columns; those but the first ``left`` are right-aligned."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * left + "--:|" * (len(columns) - left),
    ]
    for row in rows:
        cells = [str(cell) for cell in row]
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells under {len(columns)} columns: {cells}")
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """So many digits, never an exponent: 0.123, 1.23, 12.3, 123, 1,234; None is empty."""
    if value is None:
        return ""
    places = max(0, digits - len(str(int(abs(value)))) + (abs(value) < 1))
    return f"{value:,.{places}f}"


def size(value: float | None) -> str:
    """Bytes as MB or GB (of 10^6 and 10^9); None is empty."""
    if value is None:
        return ""
    return f"{number(value / 1e9)} GB" if value >= 1e9 else f"{number(value / 1e6)} MB"


def memory(value: float | None) -> str:
    """Bytes as MiB or GiB (of 2^20 and 2^30), which cards are counted in; None is empty."""
    if value is None:
        return ""
    return f"{number(value / 2**30)} GiB" if value >= 2**30 else f"{number(value / 2**20)} MiB"


def shape(pixels: Sequence[int]) -> str:
    """(H, W) as HxW."""
    return f"{pixels[0]}x{pixels[1]}"


def source(run: Mapping[str, Any]) -> str:
    """The machine, versions, commit and command of a run, in a sentence; what it does not say is left out."""
    parts = []
    if "machine" in run:
        machine = run["machine"]
        kind, text = place(run)
        if kind == "cuda":
            known = {
                "driver": machine.get("driver"),
                "CUDA": machine.get("cuda"),
                "cuDNN": machine.get("cudnn"),
            }
            text = ", ".join([text, *(f"{name} {value}" for name, value in known.items() if value)])
        if machine.get("load_before") is not None:
            text += f", load before {machine['load_before']:.1f}"
        text += f", nice {machine['nice']}" if machine.get("nice") else ""
        text += ", ahead of all other processes" if machine.get("real_time_priority") else ""
        parts.append(text)
    elif "processor" in run:
        parts.append(run["processor"])
    parts.append(", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items())))
    if "commit" in run:
        parts.append(f"commit {short(run['commit'])}")
    if "command" in run:
        parts.append(f"`{run['command']}`")
    return "; ".join(parts)


def sources(runs: Iterable[Mapping[str, Any]]) -> str:
    """A line of small print for each run, those that say the same once; many are folded."""
    lines = list(dict.fromkeys(f"<sub>{source(run)}</sub>" for run in runs))
    text = "  \n".join(lines)
    return text if len(lines) < 3 else folded("where these figures come from", text)


def short(commit: str) -> str:
    """The first digits of a commit, with the "+" of a changed checkout."""
    return commit[:7] + ("+" if commit.endswith("+") else "")


def not_measured(missing: Mapping[str, str]) -> str:
    """What could not be measured and why, in a sentence."""
    return f"Not measured: {'; '.join(f'{what} ({reason})' for what, reason in missing.items())}."


def folded(title: str, text: str) -> str:
    """Text that a reader unfolds."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
