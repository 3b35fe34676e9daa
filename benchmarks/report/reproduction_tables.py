"""The generated table of the reproduction: rows trained alike, and what they say of the first experiments' claims."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure.claims import ENCODERS, ROWS, judge
from benchmarks.report.markdown import shape, sources, table
from benchmarks.report.measured import collect

COLUMNS = {
    "abs_rel": "AbsRel",
    "rmse": "RMSE",
    "d1": "d1",
    "edge_f1": "edge F1",
    "lines": "lines",
    "peak": "peak",
}


def spread(values: list[float]) -> str:
    """The mean, with the lowest and the highest of several."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def reproduction(results: Path) -> str:
    """Of each stored run: its rows, then its verdicts."""
    runs = collect(results, "reproduction")
    return "\n\n".join(one(run) for run in runs) or "Not measured yet."


def claims(results: Path) -> str:
    """A line for each claim and run, without the rows behind it."""
    runs = collect(results, "reproduction")
    if not runs:
        return "Not measured yet."
    return "\n\n".join(f"{title(run)}\n\n{judged(run)}" for run in runs)


def judged(run: dict[str, Any]) -> str:
    """The verdicts of a run, as a table; "" where there is none."""
    lines = [
        [
            verdict.claim.says,
            f"{COLUMNS[verdict.claim.figure]} of `{verdict.claim.better}` against `{verdict.claim.other}`",
            " against ".join(f"{mean:.3f}" for mean in verdict.means()),
            f"{verdict.wins} of {len(verdict.pairs)}",
            verdict.word(),
        ]
        for verdict in judge(run["rows"])
    ]
    return table(["claim", "by", "means", "seeds", ""], lines, left=5) if lines else ""


def title(run: dict[str, Any]) -> str:
    """What was trained how, in bold."""
    words = {
        "epochs": "{} passes",
        "frames": "{} train frames",
        "batch_size": "batches of {}",
        "width": "U-Nets that begin with {} channels",
    }
    given = [word.format(run[key]) for key, word in words.items() if run.get(key)]
    if run.get("width") and run["rows"].keys() & set(ENCODERS):
        given.append("other networks whole")
    kind = ", ".join([shape(run["size"]) if run["size"] else "the recipes' size", *given])
    return f"**{kind}; {run['count']} {run['split']} frames**"


def one(run: dict[str, Any]) -> str:
    """A run of ``benchmarks/reproduce.py``."""
    rows = run["rows"]
    lines = []
    for name in sorted(rows, key=ROWS.index):
        figures = list(rows[name].values())
        lines.append([f"`{name}`", len(figures), *(spread([row[key] for row in figures]) for key in COLUMNS)])
    parts = [title(run), table(["row", "seeds", *COLUMNS.values()], lines), judged(run), sources([run])]
    return "\n\n".join(filter(None, parts))
