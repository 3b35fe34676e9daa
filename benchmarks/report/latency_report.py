"""A run of latency.py as lines of text, at most 120 columns wide."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
HEADS = (
    "model",
    "in",
    "",
    "input",
    "ms",
    "quickest, slowest",
    "first",
    "img/s",
    "x eager",
    "x ref",
    "floor",
    "MB",
)
LEFT = 4  # columns that are words


def report(run: Mapping[str, Any], reference: str | None = None) -> str:
    """The table of a run, what it was measured on, and what could not be timed.

    Args:
        run: as stored.
        reference: MODEL[:BACKEND[:PRECISION]], the row of the "x ref" column; None for no such column.
    """
    known = find(run["rows"], reference) if reference else None
    lines = [HEADS, *(cells(row, run["rows"], known) for row in run["rows"])]
    shown = [column for column in zip(*lines, strict=True) if known or column[0] != "x ref"]
    widths = [max(map(len, column)) for column in shown]
    text = heading(run)
    for line in zip(*shown, strict=True):
        padded = [
            cell.ljust(width) if number < LEFT else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append(" ".join(padded).rstrip())
    text += [f"not timed: {what}: {reason}" for what, reason in run["missing"].items()]
    if reference and known is None:
        text.append(f"not timed: the reference {reference}")
    return "\n".join(text)


def heading(run: Mapping[str, Any]) -> list[str]:
    """What was measured, on what, and the ceilings."""
    machine, ceiling = run["machine"], run["ceiling"]
    size = "{}x{}".format(*run["size"]) if run["size"] else "native sizes"
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    rates = ", ".join(f"{rate:.0f} in {precision}" for precision, rate in ceiling["gflops"].items())
    return [
        "",
        f"{size}, batch {run['batch']}, on {where}, load before {machine['load_before']}; median ms",
        f"floor: percent reached of {rates} GFLOP/s and {ceiling['gbytes']:.0f} GB/s; MB: peak memory",
    ]


def find(rows: Sequence[Row], reference: str) -> Row | None:
    """The row that a reference names."""
    model, backend, precision = (*reference.split(":"), "", "")[:3]
    wanted = (model, backend.replace("-", " ") or "eager", precision or "fp32")
    return next((row for row in rows if (row["model"], row["backend"], row["precision"]) == wanted), None)


def cells(row: Row, rows: Sequence[Row], reference: Row | None) -> tuple[str, ...]:
    """A line of the table. Ratios are those of pictures a second."""
    eager = find(rows, row["model"])
    fewer = "" if not row["batch"] else f"{row['batch']}x"
    memory, share = row["peak_memory"], row["percent_of_floor"]
    return (
        row["model"],
        row["backend"].replace("onnxruntime", "ORT"),
        row["precision"],
        fewer + "{}x{}".format(*row["size"]),
        three(row["median"]),
        f"{three(row['quickest'])}, {three(row['slowest'])}",
        three(row["first"]),
        three(row["images_per_s"]),
        ratio(row, eager),
        ratio(row, reference),
        "" if share is None else f"{share:.0f}%",
        "" if memory is None else f"{memory / 1e6:.0f}",
    )


def ratio(row: Row, other: Row | None) -> str:
    """How many times as fast as another row."""
    return "" if other is None else f"{row['images_per_s'] / other['images_per_s']:.2f}"


def three(value: float) -> str:
    """Three digits or more, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
