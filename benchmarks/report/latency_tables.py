"""The generated tables of inference: latency, peers, the Predictor.

Each takes the folder of result files and gives Markdown; what has not been measured is said in words.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.markdown import folded, memory, not_measured, number, shape, sources, table
from benchmarks.report.measured import Place, collect, place, unmeasured
from depthzoo.models import list_models

# In the order of the columns; others follow by name.
BACKENDS = ("eager", "channels_last", "compile", "onnxruntime", "onnxruntime cuda graph", "tensorrt")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")

Row = Mapping[str, Any]
Way = tuple[str, str]


def order(way: Way) -> tuple[int, str, int]:
    """Place of a (backend, precision) among others."""
    backend, precision = way
    known = BACKENDS.index(backend) if backend in BACKENDS else len(BACKENDS)
    return known, backend, PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)


def way(row: Row) -> Way:
    """Backend and precision of a row."""
    return row["backend"], row["precision"]


def named(one: Way) -> str:
    """A way in words; float32 goes without saying."""
    return one[0] if one[1] == "fp32" else " ".join(one)


def model_name(row: Row) -> str:
    """A model of the zoo as code, a peer in italics."""
    return f"*{row['model']}*" if row.get("peer") else f"`{row['model']}`"


# -- latency ----------------------------------------------------------------------------------------------


def latency_groups(results: Path) -> dict[tuple[Place, str, int], list[dict[str, Any]]]:
    """The runs of latency, by place, size ("480x640", or "native") and batch."""
    groups: dict[tuple[Place, str, int], list[dict[str, Any]]] = {}
    for run in collect(results, "latency"):
        asked = shape(run["size"]) if run["size"] else "native"
        groups.setdefault((place(run), asked, run["batch"]), []).append(run)
    return groups


def rows_of(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of runs. What several have measured of a model is taken from the one that has the most of it, so that
    as many as possible of its rows are of one run; of equal ones, from the last. "run" is the number of the run.
    """
    blocks: dict[tuple[str, tuple[int, ...]], list[dict[Way, dict[str, Any]]]] = {}
    for index, run in enumerate(runs):
        of_run: dict[tuple[str, tuple[int, ...]], dict[Way, dict[str, Any]]] = {}
        for row in run["rows"]:
            of_run.setdefault((row["model"], tuple(row["size"])), {})[way(row)] = row | {"run": index}
        for key, block in of_run.items():
            blocks.setdefault(key, []).insert(0, block)
    found: list[dict[str, Any]] = []
    for each in blocks.values():
        merged: dict[Way, dict[str, Any]] = {}
        for block in sorted(each, key=len, reverse=True):
            merged = block | merged
        found += merged.values()
    return found


def headline(where: Place, asked: str, batch: int) -> str:
    """Of a table of latency."""
    at = "each at its own size" if asked == "native" else asked
    return f"**{where[1]}, {at}, batch {batch}**"


def latency(results: Path) -> str:
    """Median milliseconds by model and way, then all that is known of each, folded."""
    parts = []
    for (where, asked, batch), runs in latency_groups(results).items():
        rows = rows_of(runs)
        parts += [headline(where, asked, batch) + ", median milliseconds", medians(rows, asked)]
        parts += in_turn(rows)
        missing = {what: reason for run in runs for what, reason in run.get("missing", {}).items()}
        parts += [not_measured(missing)] if missing else []
        parts += [folded("spread, first run, memory, floor", details(rows, batch)), sources(runs)]
        ceilings = [text for text in dict.fromkeys(ceiling(run) for run in runs) if text]
        parts += ceilings
    return "\n\n".join(parts + unmeasured(collect(results, "latency")))


def medians(rows: Sequence[Row], asked: str) -> str:
    """A row for each model and input, a column for each way; the zoo first, the quickest first. The input is told where
    not all have the one that was asked for: some take only multiples of 14 or 32.
    """
    ways = sorted({way(row) for row in rows}, key=order)
    models: dict[tuple[str, tuple[int, ...]], dict[Way, Row]] = {}
    for row in rows:
        models.setdefault((row["model"], tuple(row["size"])), {})[way(row)] = row
    quick: dict[str, float] = {}
    for (name, _), found in models.items():
        quick[name] = min(quickest(found)["median"], quick.get(name, float("inf")))
    several = any(shape(row["size"]) != asked for row in rows)
    lines = []
    for (_, pixels), found in sorted(models.items(), key=lambda each: (is_peer(each[1]), quick[each[0][0]])):
        one = next(iter(found.values()))
        about = [model_name(one), *([shape(pixels)] if several else [])]
        about += [f"{one['parameters'] / 1e6:.1f}M", number(one["gflop"] / one["batch"])]
        lines.append(about + [number(found[each]["median"]) if each in found else "" for each in ways])
    columns = ["model", *(["input"] if several else []), "parameters", "GFLOP", *map(named, ways)]
    return table(columns, lines, left=2 if several else 1)


def in_turn(rows: Sequence[Row]) -> list[str]:
    """Which models were timed in turn with each other, where not all were."""
    runs: dict[int, dict[str, None]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[model_name(row)] = None
    groups = "; ".join(", ".join(names) for names in runs.values())
    return [f"Timed in {len(runs)} runs, of which only one's models are to be compared: {groups}."] * (
        len(runs) > 1
    )


def is_peer(found: Mapping[Way, Row]) -> bool:
    """Whether rows are of a model from elsewhere."""
    return bool(next(iter(found.values())).get("peer"))


def quickest(found: Mapping[Way, Row]) -> Row:
    """The row with the lowest time per picture."""
    return min(found.values(), key=lambda row: row["median"] / row["batch"])


def details(rows: Sequence[Row], batch: int) -> str:
    """Everything of each row."""
    lines = []
    for row in sorted(rows, key=lambda row: (bool(row.get("peer")), row["model"], order(way(row)))):
        fewer = f" (batch {row['batch']})" if row["batch"] != batch else ""
        percent = row.get("percent_of_floor")
        lines.append(
            [
                model_name(row),
                named(way(row)) + fewer,
                number(row["median"]),
                f"{number(row['quickest'])} to {number(row['slowest'])}",
                row["runs"],
                number(row["first"]),
                number(row.get("ready")),
                number(row["images_per_s"]),
                memory(row.get("peak_memory")),
                number(row.get("floor")),
                "" if percent is None else f"{percent:.0f}%",
            ]
        )
    columns = [
        "model",
        "way",
        "median ms",
        "quickest to slowest",
        "runs",
        "first ms",
        "ready ms",
        "pictures/s",
    ]
    return table([*columns, "memory", "floor ms", "of the floor"], lines, left=2)


def ceiling(run: Mapping[str, Any]) -> str:
    """What the machine can do at most, in words."""
    known = run.get("ceiling")
    if not known:
        return ""
    rates = ", ".join(
        f"{number(rate)} GFLOP/s in {precision} ({known['library'][precision]})"
        for precision, rate in known["gflops"].items()
    )
    return f"<sub>Ceiling, measured in the same run: {rates}; copy {number(known['gbytes'])} GB/s.</sub>"


def peers(results: Path) -> str:
    """How many times as fast the zoo is as each peer in eager PyTorch; only what one run measured."""
    parts = []
    for run in collect(results, "latency"):
        rows = [row for row in run["rows"] if row["batch"] == run["batch"]]
        others = [row for row in rows if row.get("peer") and way(row) == ("eager", "fp32")]
        ours = [row for row in contenders(rows) if not row.get("peer")]
        if not others or not ours:
            continue
        lines = [
            [model_name(other), shape(other["size"]), number(other["median"])]
            + [f"{other['median'] / our['median']:.1f}" for our in ours]
            for other in sorted(others, key=lambda row: row["median"])
        ]
        asked = shape(run["size"]) if run["size"] else "native"
        parts.append(headline(place(run), asked, run["batch"]))
        columns = [f"{model_name(our)} {named(way(our))}{input_of(our, asked)}" for our in ours]
        parts.append(table(["peer", "input", "eager ms", *columns], lines, left=2))
        parts.append(sources([run]))
    return "\n\n".join(parts) if parts else "Not measured yet."


def input_of(row: Row, asked: str) -> str:
    """The input of a row where it is not the one that was asked for."""
    return "" if shape(row["size"]) == asked else f" at {shape(row['size'])}"


def contenders(rows: Sequence[Row]) -> list[Row]:
    """Of each model with trained weights: eager, the quickest in float32, the quickest of all."""
    found = []
    for name in list_models(pretrained=True):
        mine = {way(row): row for row in rows if row["model"] == name and not row.get("peer")}
        full = {each: row for each, row in mine.items() if each[1] == "fp32"}
        chosen = [mine[way_] for way_ in [("eager", "fp32")] if way_ in mine]
        chosen += [quickest(full)] if full else []
        chosen += [quickest(mine)] if mine else []
        found += list({way(row): row for row in chosen}.values())
    return found


def layout(run: Row) -> str:
    """Of the network inside the Predictor, which on a CPU chooses its own: the way that is so called under Latency."""
    return "channels_last" if place(run)[0] == "cpu" else "eager"


def predictor(results: Path) -> str:
    """The bare network, and the Predictor around it."""
    parts = []
    for run in collect(results, "predictor"):
        found: dict[tuple[str, str], dict[str, Row]] = {}
        for row in run["rows"]:
            found.setdefault((row["model"], shape(row["size"])), {})[row["what"]] = row
        whats = [
            what for what in dict.fromkeys(row["what"] for row in run["rows"]) if what.startswith("Predictor")
        ]
        lines = []
        for (name, at), rows in found.items():
            cells = [f"`{name}`", at, number(rows["network"]["median"])]
            for what in whats:
                over = rows[what]["over_forward"] if what in rows else None
                cells.append("" if over is None else f"{number(rows[what]['median'])} ({over:+.0%})")
            lines.append(cells)
        parts.append(f"**{place(run)[1]}, a picture of {shape(run['picture'])}**, median milliseconds")
        parts.append(table(["model", "works at", f"network, {layout(run)}", *whats], lines, left=2))
        parts.append(sources([run]))
    return "\n\n".join(parts + unmeasured(collect(results, "predictor")))


def summary(results: Path) -> str:
    """The medians of one picture of 480x640, on each machine."""
    parts = []
    for (where, asked, batch), runs in latency_groups(results).items():
        if (asked, batch) == ("480x640", 1):
            rows = rows_of(runs)
            parts += [
                headline(where, asked, batch) + ", median milliseconds",
                medians(rows, asked),
                *in_turn(rows),
            ]
    return "\n\n".join(parts) if parts else "Not measured yet."
