"""What each plot shows, gathered from result files and cards: by name of the plot, and why another cannot be drawn."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.accuracy_tables import load
from benchmarks.report.latency_tables import latency_groups, named, order, rows_of, way
from benchmarks.report.markdown import shape
from benchmarks.report.measured import Place
from benchmarks.report.training_tables import scaling_groups, training_groups
from depthzoo import weights
from depthzoo.models import list_models

Found = tuple[dict[str, Any], dict[str, str]]
# Backends that compute what the weights' card was measured with.
TORCH = ("eager", "channels_last", "compile")


def slug(where: Place) -> str:
    """A place as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", where[1].lower()).strip("-")


def abs_rels(results: Path) -> dict[tuple[str, str], float]:
    """AbsRel on the test split of each model with a card: of "torch", and of "fp32", "fp16", "int8" as exported."""
    known = {}
    exported = load(results, "export_accuracy.json").get("models", {})
    for name in list_models(pretrained=True):
        card = weights.card(name)
        known[name, "torch"] = float(card["metrics"]["per_image"]["abs_rel"])
        report = exported.get(name, {})
        if report.get("weights") == card["file"]:
            known |= {(name, key): row["abs_rel"] for key, row in report["rows"].items() if key != "torch"}
    return known


def accuracy(results: Path) -> Found:
    """AbsRel against the file's size, and on each machine against latency and memory at the weights' own size."""
    known, found, missing = abs_rels(results), {}, {}
    files = []
    exported = load(results, "export_accuracy.json").get("models", {})
    for (name, kind), error in known.items():
        nbytes = weights.card(name)["bytes"] if kind == "torch" else exported[name]["rows"][kind]["bytes"]
        what = "safetensors" if kind == "torch" else f"ONNX {kind}"
        files.append({"model": name, "way": what, "abs_rel": error, "x": nbytes / 1e6})
    if files:
        found["size"] = {"title": "NYU Depth V2, 654 test images", "panels": {"size of the file (MB)": files}}
    else:
        missing["size"] = "no model has a card"
    places: dict[Place, list[dict[str, Any]]] = {}
    for (where, _, batch), runs in latency_groups(results).items():
        if batch == 1:
            places.setdefault(where, []).extend(rows_of(runs))
    for where, rows in places.items():
        points = [point for row in rows for point in on_plot(row, known)]
        panels = {
            "latency of one picture (ms)": [point | {"x": point["median"]} for point in points],
            "peak memory (MiB)": [
                point | {"x": point["peak_memory"] / 2**20} for point in points if point["peak_memory"]
            ],
        }
        panels = {axis: each for axis, each in panels.items() if each}
        sizes = sorted({shape(weights.card(name)["size"]) for name in list_models(pretrained=True)})
        own = f"at the weights' own size ({', '.join(sizes)}), batch 1"
        if panels:
            found[slug(where)] = {"title": f"{where[1]}, {own}", "panels": panels}
        else:
            missing[slug(where)] = f"no latency {own}"
    if not places:
        missing["latency"] = "no latency of batch 1 has been measured"
    return found, missing


def on_plot(row: Mapping[str, Any], known: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    """A row of latency with the accuracy that belongs to it, if that was measured and is of the same size."""
    name, (backend, precision) = row["model"], way(row)
    kind = precision
    if backend in TORCH:
        kind = "torch" if precision == "fp32" else "none"
    if row.get("peer") or (name, kind) not in known or row["size"] != weights.card(name)["size"]:
        return []
    about = {"model": name, "way": named(way(row)), "abs_rel": known[name, kind]}
    return [about | {"median": row["median"], "peak_memory": row.get("peak_memory")}]


def latency(results: Path) -> Found:
    """A bar for each model and way, of each machine, size and batch."""
    found: dict[str, Any] = {}
    for (where, asked, batch), runs in latency_groups(results).items():
        rows = sorted(rows_of(runs), key=lambda row: order(way(row)))
        bars = [
            {"model": row["model"] if shape(row["size"]) == asked else f"{row['model']} {shape(row['size'])}"}
            | {"peer": bool(row.get("peer")), "way": named(way(row)), "floor": row.get("floor")}
            | {key: row[key] for key in ("median", "quickest", "slowest")}
            for row in rows
            if row["batch"] == batch
        ]
        at = "each at its own size" if asked == "native" else asked
        title = f"Latency, {at}, batch {batch}\n{where[1]}"
        if bars:
            found[f"{slug(where)}.{asked}.{batch}"] = {"title": title, "bars": bars}
    return found, {} if found else {"480x640.1": "no latency has been measured"}


def training(results: Path) -> Found:
    """Images per second and memory of each model and way, on each machine."""
    found: dict[str, Any] = {}
    for (where, at), runs in training_groups(results).items():
        bars = [
            {"model": row["model"], "way": f"{row['way']}, batch {row['batch']}"}
            | {key: row.get(key) for key in ("images_per_s", "lowest", "highest", "peak_memory")}
            for run in runs
            for row in run["rows"]
        ]
        if bars:
            found[f"{slug(where)}.{at}"] = {"title": f"Training at {at}\n{where[1]}", "bars": bars}
    return found, {} if found else {"throughput": "no training has been measured"}


def scaling(results: Path) -> Found:
    """Curves of images per second, a panel for each of what was varied, on each machine."""
    found: dict[str, Any] = {}
    for (where, over), runs in scaling_groups(results).items():
        figure = found.setdefault(slug(where), {"title": f"Throughput\n{where[1]}", "panels": {}})
        figure["panels"][over] = [
            {
                "name": f"{run['model']}, {run['what']}",
                "at": curve_at(run),
                "points": sorted([row["value"], *rates(row)] for row in run["rows"]),
                "from memory": run.get("from memory"),
            }
            for run in runs
            if run["rows"]
        ]
    return found, {} if found else {"curves": "no scaling has been measured"}


def rates(row: Mapping[str, Any]) -> list[float]:
    """Median, lowest and highest images per second."""
    middle = row["images_per_s"]
    return [middle, row.get("lowest", middle), row.get("highest", middle)]


def curve_at(run: Mapping[str, Any]) -> str:
    """What did not vary."""
    words = [shape(run["size"])] if run.get("size") else []
    return ", ".join(words + ([f"batch {run['batch']}"] if run.get("batch") else []))


GATHER: Mapping[str, Callable[[Path], Found]] = {
    "accuracy": accuracy,
    "latency": latency,
    "training": training,
    "scaling": scaling,
}
