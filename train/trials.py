"""Compare recipes: equal steps from equal weights, two seeds on each of several validation folds.

python -m train.trials run --data FOLD0 FOLD1 --init ROOMS.safetensors --runs DIR [--rows today zoom] [--seeds 0 1]
python -m train.trials table

``run`` trains each row, a recipe of ``train/recipes/trials``, evaluates its last weights on the fold's validation
frames, and adds a line to ``trials.jsonl`` there; what is finished is not repeated. ``table`` prints those lines as the
table of ``train/recipes/README.md``.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthzoo.metrics import DepthMetrics
from depthzoo.models import create_model
from train.arguments import command
from train.cards import commit
from train.config import load_recipe
from train.evaluation import default_protocol, predict_frames, protocol_for, scale_by_medians, torch_predict
from train.records import load
from train.reproduction.__main__ import train
from train.shards import ShardDataset

RECIPES = Path(__file__).with_name("recipes") / "trials"
RESULTS = RECIPES / "trials.jsonl"
START = "rooms"  # the recipe whose weights every row starts from
FIRST = "today"  # the row that the others are compared with
COLUMNS = {
    "abs_rel": "AbsRel",
    "rmse": "RMSE, m",
    "d1": "d1",
    "abs_rel_scaled": "AbsRel, scale known",
    "slope": "slope",
}


@torch.inference_mode()
def measure(weights: Path, model: str, dataset: ShardDataset, size: tuple[int, int]) -> dict[str, float]:
    """Return the metrics of a weights file on a split, means over its frames.

    ``abs_rel_scaled`` is AbsRel after each prediction is multiplied by the ratio of the medians; ``slope`` is that of
    the least-squares line of ln prediction on ln target over all valid pixels, 1 for a network that does not pull
    near and far depth towards the mean.
    """
    network = create_model(model, weights=weights)
    protocol = protocol_for(dataset, default_protocol(dataset))
    metrics, scaled = DepthMetrics(protocol), DepthMetrics(protocol)
    sums = np.zeros(5)
    for frames in predict_frames(torch_predict(network, torch.device("cpu")), dataset, size):
        metrics.update(frames.depth, frames.target)
        mask = protocol.valid(frames.target)
        x, y = frames.target[mask].double().log(), frames.depth[mask].double().clamp(protocol.min_depth).log()
        sums += [len(x), *(float(value.sum()) for value in (x, y, x * x, x * y))]
        scale_by_medians(frames, protocol)
        scaled.update(frames.depth, frames.target)
    n, sx, sy, sxx, sxy = sums
    means = metrics.compute()["per_image"]
    return {
        **{key: means[key] for key in ("abs_rel", "rmse", "d1")},
        "abs_rel_scaled": scaled.compute()["per_image"]["abs_rel"],
        "slope": float((n * sxy - sx * sy) / (n * sxx - sx * sx)),
    }


def run_row(row: str, data: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row; return a line of the results.

    Raises:
        KeyboardInterrupt: the training was stopped; the next ``run`` continues it.
    """
    config = load_recipe(
        RECIPES / f"{row}.toml", seed=seed, init=str(args.init) if args.init else None, steps=args.steps
    )
    weights = train(config, data, args.runs / f"{row}-{data.name}-seed{seed}", torch.device("cpu"))
    metrics = measure(weights, config.model, ShardDataset(data, "val"), config.size)
    settings = {"steps": config.steps, "images": config.steps * config.batch_size, "size": list(config.size)}
    return {"row": row, "fold": data.name, "seed": seed, **settings, **metrics, "commit": commit()}


def table(lines: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: for each row the mean over its runs and the difference to ``today``.

    The difference is that of runs with equal fold and seed, with its standard error.
    """
    rows: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(line["row"], {})[line["fold"], line["seed"]] = line
    head = ["row", "runs", *COLUMNS.values(), f"AbsRel - {FIRST}"]
    text = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for row, runs in rows.items():
        means = [f"{statistics.mean(run[key] for run in runs.values()):.3f}" for key in COLUMNS]
        pairs = [
            run["abs_rel"] - rows[FIRST][k]["abs_rel"] for k, run in runs.items() if k in rows.get(FIRST, {})
        ]
        difference = ""
        if row != FIRST and len(pairs) > 1:
            error = statistics.stdev(pairs) / len(pairs) ** 0.5
            difference = f"{statistics.mean(pairs):+.4f} ± {error:.4f}"
        text.append("| " + " | ".join([row, str(len(runs)), *means, difference]) + " |")
    return "\n".join(text)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.trials", description=__doc__.splitlines()[0])
    commands = main.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate rows")
    run.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="a data set per fold")
    run.add_argument("--init", type=Path, metavar="FILE", help="weights that every row starts from")
    run.add_argument("--runs", type=Path, required=True, metavar="DIR", help="folder of the runs")
    known = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != START)
    run.add_argument("--rows", nargs="+", choices=known, default=known, metavar="ROW", help=", ".join(known))
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    run.add_argument("--steps", type=int, metavar="N", help="instead of the recipes'")
    run.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    commands.add_parser("table", help="print the results").add_argument(
        "--results", type=Path, default=RESULTS, metavar="FILE"
    )
    return main


def run(args: argparse.Namespace) -> int:
    if args.command == "table":
        print(table(load(args.results)))
        return 0
    done = {(line["row"], line["fold"], line["seed"]) for line in load(args.results)}
    # Seed by seed and fold by fold, so that an unfinished comparison is still one of pairs.
    for seed in args.seeds:
        for data in args.data:
            for row in args.rows:
                if (row, data.name, seed) not in done:
                    line = run_row(row, data, seed, args)
                    with open(args.results, "a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
