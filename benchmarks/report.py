"""Render the tables of the documents from the results and the weights' cards, and draw the plots.

    python -m benchmarks.report [--check]

--check writes nothing; the exit code is 1 if a document is not what its sources say.
"""

import argparse
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import depthzoo
from benchmarks.roofline import Cost, build_untrained, count_cost
from depthzoo import weights
from export.pictures import EXAMPLES
from train import records
from train.arguments import command
from train.records import RESULTS, Row
from train.reproduction.claims import ENCODERS, ROWS, SETTINGS, judge

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = (
    "eager",
    "channels_last",
    "compile",
    "onnxruntime",
    "onnxruntime_graph",
    "tensorrt",
    "predictor",
)
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
METRICS = {"abs_rel": "AbsRel", "rmse": "RMSE", "d1": "d1"}
STRUCTURE = {**METRICS, "edge_f1": "edge F1", "lines": "lines", "peak": "peak"}
NONE = "Not measured yet."
UNTRAINED_SIZE = (192, 256)  # at which a model without weights is counted


# -- Markdown ---------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return a Markdown table. All columns but the first ``left`` are right-aligned."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * left + "--:|" * (len(columns) - left)]
    for row in rows:
        lines.append("|" + "|".join(f" {cell} " if cell != "" else " " for cell in row) + "|")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Return three digits without an exponent: 0.123, 1.23, 12.3, 123, 1,234; None is empty."""
    if value is None:
        return ""
    places = max(0, 3 - len(str(int(abs(value)))) + (abs(value) < 1))
    return f"{value:,.{places}f}"


def memory(value: float | None) -> str:
    """Return bytes as MiB or GiB; None is empty."""
    if value is None:
        return ""
    return f"{number(value / 2**30)} GiB" if value >= 2**30 else f"{number(value / 2**20)} MiB"


def shape(row: Row) -> str:
    return f"{row['height']}x{row['width']}"


def place(row: Row) -> str:
    """Return the machine of a row."""
    return (
        row["machine"]
        if row["device"] == "cuda"
        else f"{row['machine']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    )


def source(rows: Sequence[Row]) -> str:
    """Return a line of small print for each run: machine, versions, commit and command."""
    lines = []
    for row in {row["run"]: row for row in rows}.values():
        versions = ", ".join(f"{name} {row[name]}" for name in records.PACKAGES if name in row)
        commit = row["commit"][:7] + "+" * row["commit"].endswith("+")
        load = f", load {row['load']:.1f}" if row.get("load") is not None else ""
        lines.append(f"<sub>{place(row)}{load}; {versions}; commit {commit}; `{row['command']}`</sub>")
    return "  \n".join(dict.fromkeys(lines))


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of some keys, in the order of their first row."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


# -- accuracy ---------------------------------------------------------------------------------------------


@functools.cache
def cost(name: str, size: tuple[int, int]) -> Cost:
    """Return parameters and GFLOP of a model at an image size."""
    return count_cost(functools.partial(build_untrained, name), size)


def cards() -> list[dict[str, Any]]:
    """Return the cards of all weights, from the files beside them."""
    names = [(name, tag) for name in depthzoo.list_models(pretrained=True) for tag in weights.tags(name)]
    files = [weights.BUNDLED / weights.card(name, tag)["file"] for name, tag in names]
    return [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in files]


def images_seen(card: Mapping[str, Any]) -> int:
    """Return the number of training images, those of the weights that training started from included."""
    start = card.get("initialised_from")
    return int(card["trained_on"]["images"]) + (images_seen(start) if start else 0)


def zoo(results: Path, all_models: bool = False) -> str:
    """A row for each file of weights, measured at its working size. With ``all_models`` also the other models."""
    lines = []
    for card in cards():
        size = (card["size"][0], card["size"][1])
        of_model = cost(card["model"], size)
        about = [f"{of_model.parameters / 1e6:.1f}M", f"{card['bytes'] / 1e6:.1f} MB", "{}x{}".format(*size)]
        metrics = [f"{card['metrics']['per_image'][key]:.3f}" for key in METRICS]
        trained = f"{card['trained_on']['device']}, {images_seen(card):,} images"
        lines.append(
            [f"`{card['model']}`", f"`{card['tag']}`", *about, number(of_model.gflop), *metrics, trained]
        )
    for name in depthzoo.list_models() if all_models else ():
        if not weights.tags(name):
            of_model = cost(name, UNTRAINED_SIZE)
            about = [f"{of_model.parameters / 1e6:.1f}M", "", "{}x{}".format(*UNTRAINED_SIZE)]
            lines.append([f"`{name}`", "none yet", *about, number(of_model.gflop), *[""] * 4])
    columns = ["model", "tag", "parameters", "file", "size", "GFLOP", *METRICS.values(), "trained on"]
    return table(columns, lines, left=2).replace("|--:|\n", "|---|\n", 1)  # the last column is text


def sizes(results: Path) -> str:
    """AbsRel of the bare network by image size."""
    known = [card for card in cards() if card.get("sizes")]
    if not known:
        return NONE
    columns = list(known[0]["sizes"])
    lines = [
        [
            f"`{card['model']}`",
            f"`{card['tag']}`",
            *(f"{card['sizes'][size]['abs_rel']:.3f}" for size in columns),
        ]
        for card in known
    ]
    return table(["model", "tag", *columns], lines, left=2)


def averaging(results: Path) -> str:
    """Per-image and pooled metrics, with and without flip averaging."""
    lines = []
    for card in cards():
        metrics = card["metrics"]
        one, pooled, flip = metrics["per_image"], metrics["pooled"], metrics["flip"]["per_image"]
        values = [one["abs_rel"], one["rmse"], pooled["rmse"], one["d1"], *(flip[key] for key in METRICS)]
        lines.append([f"`{card['model']}`", f"`{card['tag']}`", *(f"{value:.3f}" for value in values)])
    columns = ["AbsRel", "RMSE", "RMSE pooled", "d1", "AbsRel flip", "RMSE flip", "d1 flip"]
    return table(["model", "tag", *columns], lines, left=2)


def distance(results: Path) -> str:
    """AbsRel and bias by true distance."""
    known = [card for card in cards() if "failures" in card]
    if not known:
        return NONE
    bands = known[0]["failures"]["by_distance"]
    lines: list[list[Any]] = [["share of the pixels", "", *(f"{band['share']:.0%}" for band in bands)]]
    for card in known:
        own = card["failures"]["by_distance"]
        cells = [f"{band['abs_rel']:.3f} ({band['bias']:+.0%})" for band in own]
        lines.append([f"`{card['model']}`", f"`{card['tag']}`", *cells])
    columns = ["{:g} to {:g} m".format(*band["metres"]) for band in bands]
    return table(["model", "tag", *columns], lines, left=2)


def accuracy(results: Path) -> str:
    """AbsRel of each exported file, and how far it moved from PyTorch's."""
    rows = records.load(results / "accuracy.jsonl")
    lines = []
    for row in rows:
        kind = "PyTorch" if row["backend"] == "eager" else f"ONNX {row['precision']}"
        moved = f"{row['moved']:+.2%}" if "moved" in row else ""
        metrics = [f"{row[key]:.4f}" for key in METRICS]
        lines.append([f"`{row['model']}`", kind, shape(row), *metrics, moved, f"{row['bytes'] / 1e6:.1f} MB"])
    columns = ["model", "form", "works at", *METRICS.values(), "AbsRel moved", "file"]
    return f"{table(columns, lines, left=3)}\n\n{source(rows)}" if rows else NONE


# -- speed ------------------------------------------------------------------------------------------------


def latency_table(rows: Sequence[Row]) -> str:
    """A row per model and input, a column per backend and precision: milliseconds (roofline efficiency)."""
    ways = sorted(
        {(row["backend"], row["precision"]) for row in rows},
        key=lambda way: (BACKENDS.index(way[0]), PRECISIONS.index(way[1])),
    )
    fastest = {name: min(row["ms"] for row in own) for (name,), own in grouped(rows, "model").items()}
    lines = []
    for own in sorted(
        grouped(rows, "model", "height", "width").values(),
        key=lambda own: (own[0]["peer"], fastest[own[0]["model"]]),
    ):
        cells = {(row["backend"], row["precision"]): cell(row) for row in own}
        name = f"*{own[0]['model']}*" if own[0]["peer"] else f"`{own[0]['model']}`"
        about = [name, shape(own[0]), f"{own[0]['parameters'] / 1e6:.1f}M"]
        about += [number(own[0]["gflop"] / own[0]["batch"])]
        lines.append(about + [cells.get(way, "") for way in ways])
    titles = [backend if precision == "fp32" else f"{backend} {precision}" for backend, precision in ways]
    return table(["model", "input", "parameters", "GFLOP", *titles], lines, left=2)


def cell(row: Row) -> str:
    efficiency = f" ({row['roofline_ms'] / row['ms']:.0%})" if row.get("roofline_ms") else ""
    return number(row["ms"]) + efficiency


def latency(results: Path) -> str:
    """Median milliseconds, by machine, size and batch."""
    parts = []
    rows = records.load(results / "latency.jsonl")
    for (*_, asked, batch), own in grouped(rows, "machine", "device", "threads", "asked", "batch").items():
        text = "median milliseconds, in brackets the roofline efficiency"
        parts += [f"**{place(own[0])}, {asked}, batch {batch}**, {text}", latency_table(own)]
        runs = [", ".join(dict.fromkeys(row["model"] for row in run)) for run in grouped(own, "run").values()]
        if len(runs) > 1:
            parts.append(f"{len(runs)} runs; only rows of one run were timed in turn: {'; '.join(runs)}.")
        parts.append(source(own))
    return "\n\n".join(parts) or NONE


def training(results: Path) -> str:
    """Images per second and memory of each training loop, by machine and size."""
    parts = []
    rows = records.load(results / "train_speed.jsonl")
    for own in grouped(rows, "machine", "device", "threads", "height", "width").values():
        lines = []
        for row in own:
            plain = [each for each in own if (each["model"], each["batch"]) == (row["model"], row["batch"])]
            base = next((each["images_per_s"] for each in plain if each["backend"] == "plain"), None)
            times = f"{row['images_per_s'] / base:.2f}" if base and row["backend"] != "plain" else ""
            spread = f"{number(row['images_per_s_min'])} to {number(row['images_per_s_max'])}"
            cells = [f"`{row['model']}`", row["backend"], row["precision"], row["batch"]]
            lines.append([*cells, number(row["images_per_s"]), spread, times, memory(row.get("memory"))])
        columns = ["images/s", "lowest to highest", "times plain", "memory"]
        text = table(["model", "loop", "precision", "batch", *columns], lines, left=3)
        parts += [f"**{place(own[0])}, {shape(own[0])}**", text, source(own)]
    return "\n\n".join(parts) or NONE


def gpu(results: Path) -> str:
    """What has been measured on which GPU."""
    found = {}
    for name in ("latency", "train_speed", "reproduction"):
        rows = [row for row in records.load(results / f"{name}.jsonl") if row["device"] == "cuda"]
        if rows:
            found[name] = ", ".join(sorted({row["machine"] for row in rows}))
    if not found:
        return "GPU figures have not been measured yet: run `benchmarks/gpu.sh` on a machine with a GPU."
    return "Measured on a GPU: " + "; ".join(f"{name} ({machine})" for name, machine in found.items()) + "."


# -- reproduction -----------------------------------------------------------------------------------------


def reproduction_title(row: Row, names: set[str]) -> str:
    words = {"epochs": "{} passes", "frames": "{} train frames", "batch": "batches of {}"}
    words["model_width"] = "U-Nets that begin with {} channels"
    parts = [word.format(row[key]) for key, word in words.items() if row.get(key)]
    if row.get("model_width") and names & set(ENCODERS):
        parts.append("other networks whole")
    return f"**{shape(row)}, {', '.join(parts)}; {row['count']} {row['split']} frames**"


def claims_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            verdict.claim.text,
            f"{STRUCTURE[verdict.claim.metric]} of `{verdict.claim.better}` against `{verdict.claim.other}`",
            " against ".join(f"{mean:.3f}" for mean in verdict.means),
            f"{verdict.wins} of {len(verdict.pairs)}",
            verdict.word,
        ]
        for verdict in judge(rows)
    ]
    return table(["claim", "by", "means", "seeds", ""], lines, left=5)


def claims(results: Path, details: bool = False) -> str:
    """The verdicts on the claims of the first experiments; with details the rows behind them."""
    parts = []
    for own in grouped(records.load(results / "reproduction.jsonl"), *SETTINGS).values():
        parts.append(reproduction_title(own[0], {row["row"] for row in own}))
        if details:
            lines = []
            for (name,), seeds in sorted(
                grouped(own, "row").items(), key=lambda item: ROWS.index(item[0][0])
            ):
                cells = [mean_and_range([row[key] for row in seeds]) for key in STRUCTURE]
                lines.append([f"`{name}`", len(seeds), *cells])
            parts.append(table(["row", "seeds", *STRUCTURE.values()], lines))
        parts.append(claims_table(own))
        if details:
            parts.append(source(own))
    return "\n\n".join(parts) or NONE


def mean_and_range(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


# -- plots ------------------------------------------------------------------------------------------------


def draw_plots(results: Path) -> list[Path]:
    """Draw a plot of latency for each machine, size and batch. Plots of results that are gone are removed."""
    rows = records.load(results / "latency.jsonl")
    drawn = []
    for keys, own in grouped(rows, "machine", "device", "threads", "asked", "batch").items():
        slug = re.sub(r"[^a-z0-9]+", "-", f"{place(own[0])} {keys[3]} {keys[4]}".lower())
        drawn.append(draw_latency(own, results / f"latency.{slug}.png"))
    for path in results.glob("latency.*.png"):
        if path not in drawn:
            path.unlink()
    return drawn


def draw_latency(rows: Sequence[Row], path: Path) -> Path:
    """Dots on a log axis: the median of each backend, with a line from the fastest to the slowest call."""
    from matplotlib.figure import Figure

    models = sorted(
        grouped(rows, "model").items(), key=lambda item: (item[1][0]["peer"], min(r["ms"] for r in item[1]))
    )
    ways = list(grouped(rows, "backend", "precision"))
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(models)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{place(rows[0])}, {rows[0]['asked']}, batch {rows[0]['batch']}", fontsize=10)
    for index, (backend, precision) in enumerate(ways):
        own = [
            (y, row)
            for y, (_, each) in enumerate(models)
            for row in each
            if (row["backend"], row["precision"]) == (backend, precision)
        ]
        shift = 0.6 * (index / max(1, len(ways) - 1) - 0.5)
        ms = [row["ms"] for _, row in own]
        spread = [
            [row["ms"] - row["ms_min"] for _, row in own],
            [row["ms_max"] - row["ms"] for _, row in own],
        ]
        axes.errorbar(ms, [y + shift for y, _ in own], xerr=spread, fmt="o", markersize=4, linewidth=0.8,
                      label=f"{backend} {precision}")  # fmt: skip
    axes.set_yticks(range(len(models)), [name for (name,), _ in models])
    axes.invert_yaxis()
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else "")
    axes.set_xlabel("milliseconds (log scale): median, fastest and slowest call")
    axes.grid(axis="x", which="both", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    return path


def draw_panel(path: Path) -> Path:
    """Draw the README's picture: the default model on a bundled image, with its true depth."""
    target = np.asarray(Image.open(EXAMPLES / "kitchen.depth.png"), np.float32) / 1000
    depthzoo.predictor(device="cpu")(EXAMPLES / "kitchen.jpg").save_panel(path, target)
    return path


def plots(results: Path) -> str:
    names = sorted(path.name for path in results.glob("latency.*.png"))
    return "\n".join(f"![{name}](results/{name})" for name in names) or "Nothing to draw yet."


# -- the command ------------------------------------------------------------------------------------------

Block = Callable[[Path], str]
DOCUMENTS: Mapping[str, Mapping[str, Block]] = {
    "README.md": {"zoo": zoo},
    "docs/models.md": {
        "zoo": functools.partial(zoo, all_models=True),
        "averaging": averaging,
        "distance": distance,
        "sizes": sizes,
        "claims": claims,
    },
    "benchmarks/README.md": {
        "gpu": gpu,
        "latency": latency,
        "plots": plots,
        "training": training,
        "accuracy": accuracy,
        "reproduction": functools.partial(claims, details=True),
    },
}


def fill(text: str, blocks: Mapping[str, Block], results: Path, name: str = "README.md") -> str:
    """Render the blocks between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        ValueError: a marker is missing.
    """
    for marker, block in blocks.items():
        parts = re.split(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", text, flags=re.DOTALL)
        if len(parts) != 4:
            raise ValueError(f"{name} must have <!-- {marker} --> and <!-- /{marker} --> once")
        before, opening, closing, after = parts
        text = f"{before}{opening}{block(results)}\n{closing}{after}"
    return text


def stale(root: Path, results: Path) -> dict[str, str]:
    """Return the new text of each document that is not what its sources say."""
    found = {}
    for name, blocks in DOCUMENTS.items():
        before = (root / name).read_text(encoding="utf-8")
        after = fill(before, blocks, results, name)
        if after != before:
            found[name] = after
    return found


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.report", description=summary)
    main.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a document would change"
    )
    return main


def run(args: argparse.Namespace) -> int:
    if not args.check:
        for path in [*draw_plots(RESULTS), draw_panel(RESULTS / "panel.png")]:
            print(f"-> {path}")
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
