"""The generated tables of training: throughput, largest batches, scaling.

Each takes the folder of result files and gives Markdown; what has not been measured is said in words.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.markdown import memory, not_measured, number, shape, sources, table
from benchmarks.report.measured import Place, collect, place, unmeasured

Row = Mapping[str, Any]


def training_groups(results: Path) -> dict[tuple[Place, str], list[dict[str, Any]]]:
    """The runs of training, by place and size ("288x384")."""
    groups: dict[tuple[Place, str], list[dict[str, Any]]] = {}
    for run in collect(results, "training"):
        groups.setdefault((place(run), shape(run["size"])), []).append(run)
    return groups


def training(results: Path) -> str:
    """Images per second and memory of each way, and what they are of the plain loop's at the same batch."""
    parts = []
    for (where, at), runs in training_groups(results).items():
        measured = [run for run in runs if run["rows"]]
        lines = [throughput(row) for run in measured for row in run["rows"]]
        missing = {what: reason for run in measured for what, reason in run.get("missing", {}).items()}
        if not lines and not missing:
            continue
        parts.append(f"**{where[1]}, {at}**")
        columns = ["model", "way", "batch", "in", "images/s", "lowest to highest", "of the floor", "memory"]
        parts.append(table([*columns, "times the seed's images/s", "of its memory"], lines, left=2))
        by = dict.fromkeys(
            row["memory_by"] for run in measured for row in run["rows"] if row.get("memory_by")
        )
        parts += [f"Memory by {', '.join(by)}."] if by else []
        parts += [not_measured(missing)] if missing else []
        parts.append(sources(measured))
    return "\n\n".join(parts + unmeasured(collect(results, "training")))


def throughput(row: Row) -> list[str]:
    """The cells of a row."""
    itself, percent = row["way"] == "seed", row.get("percent_of_floor")
    of_seed = [
        "" if itself or not row.get(key) else f"{row[key]:.2f}" for key in ("times_seed", "memory_of_seed")
    ]
    return [
        f"`{row['model']}`",
        row["way"],
        str(row["batch"]),
        row.get("precision") or "",
        number(row["images_per_s"]),
        f"{number(row['lowest'])} to {number(row['highest'])}",
        "" if percent is None else f"{percent:.0f}%",
        memory(row.get("peak_memory")),
        *of_seed,
    ]


def largest_batch(results: Path) -> str:
    """The largest batch that fits, by memory, without and with recomputation."""
    parts = []
    for (where, at), runs in training_groups(results).items():
        measured = [run for run in runs if run.get("largest_batch")]
        rows = [row for run in measured for row in run["largest_batch"]]
        if not rows:
            continue
        columns = sorted({(row["memory"], row["recompute"]) for row in rows})
        models: dict[str, dict[tuple[float, bool], Row]] = {}
        for row in rows:
            models.setdefault(row["model"], {})[row["memory"], row["recompute"]] = row
        lines = [
            [f"`{name}`"] + [batch_cell(found[each]) if each in found else "" for each in columns]
            for name, found in sorted(models.items())
        ]
        titles = [f"{nbytes / 2**30:.0f} GB{', recompute' if again else ''}" for nbytes, again in columns]
        parts += [f"**{where[1]}, {at}**", table(["model", *titles], lines)]
        if any(row["by"] == "counted" for row in rows):
            parts.append("\\* counted from the tensors that a step makes and holds, not tried out.")
        parts.append(sources(measured))
    return "\n\n".join(parts) if parts else "Not measured yet."


def batch_cell(row: Row) -> str:
    """A batch size, marked where it is counted."""
    return f"{row['batch']}{chr(92)}*" if row["by"] == "counted" else str(row["batch"])


def scaling_groups(results: Path) -> dict[tuple[Place, str], list[dict[str, Any]]]:
    """The curves of scaling, by place and by what varies."""
    groups: dict[tuple[Place, str], list[dict[str, Any]]] = {}
    for run in collect(results, "scaling"):
        groups.setdefault((place(run), run["over"]), []).append(run)
    return groups


def scaling(results: Path) -> str:
    """Images per second at each value, and the exponents of cost."""
    parts = []
    for (where, over), runs in scaling_groups(results).items():
        values = sorted({row["value"] for run in runs for row in run["rows"]})
        lines = []
        for run in runs:
            rates = {row["value"]: number(row["images_per_s"]) for row in run["rows"]}
            slopes = [run.get(key) for key in ("exponent", "exponent_at_the_end")]
            cells = [f"`{run['model']}`", curve_about(run), *(rates.get(value, "") for value in values)]
            lines.append(cells + ["" if slope is None else f"{slope:+.2f}" for slope in slopes])
        parts.append(f"**{where[1]}, images/s over {over}**")
        columns = [over, "", *(f"{value:,}" for value in values), "exponent", "at the end"]
        parts.append(table(columns, lines, left=2))
        missing = {
            f"{run['model']}, {run['what']}, {what}": reason
            for run in runs
            for what, reason in run.get("missing", {}).items()
        }
        parts += [not_measured(missing)] if missing else []
        parts.append(sources(runs))
    return "\n\n".join(parts + unmeasured(collect(results, "scaling")))


def curve_about(run: Mapping[str, Any]) -> str:
    """What a curve is of, and what did not vary."""
    words = [run["what"]]
    words += [shape(run["size"])] if run.get("size") else []
    words += [f"batch {run['batch']}"] if run.get("batch") else []
    words += [f"from memory {number(run['from memory'])}"] if "from memory" in run else []
    return ", ".join(words)


def loaded(results: Path) -> list[dict[str, Any]]:
    """What was measured of loading: loading.json, and a file for each kind of device."""
    whole = results / "loading.json"
    first = [json.loads(whole.read_text(encoding="utf-8"))] if whole.exists() else []
    return first + collect(results, "loading")


def loading(results: Path) -> str:
    """Augmented frames per second from each source."""
    parts = []
    for report in loaded(results):
        lines = [
            [
                name + (" (reference)" if name == report["reference"] else ""),
                number(case["frames_per_s"]),
                f"{number(case['lowest'])} to {number(case['highest'])}",
                f"{case['times_reference']:.2f}",
                number(case["cpu_ms_per_frame"]),
                number(case["seconds_once"] or None),
            ]
            for name, case in report["cases"].items()
        ]
        parts.append(f"**{place(report)[1]}, {shape(report['size'])}, batches of {report['batch']}**")
        columns = ["source", "frames/s", "lowest to highest", "times the reference", "CPU ms per frame"]
        parts.append(table([*columns, "seconds once"], lines))
        parts += [not_measured(report["missing"])] if report.get("missing") else []
        parts.append(sources([report]))
    return "\n\n".join(parts + unmeasured(loaded(results)))
