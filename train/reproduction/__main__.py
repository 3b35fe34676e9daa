"""Train the rows of the reproduction and measure them: do the claims of the first experiments hold?

    python -m train.reproduction --data DIR [--rows NAME...] [--seeds 0 1 2] [--runs DIR] [--split test]

The rows are the recipes of train/recipes/reproduction: the same frames, the same number of images, the same seed. The
last weights of a run are measured, not the best ones. Beside AbsRel, RMSE and d1, at the size that the network
returns: the F1 score of depth edges; lines, the power at and near the Nyquist frequency relative to the target's; and
peak, how far that stands out from the frequencies below, relative to the target's. Results of the test split go to
benchmarks/results/reproduction.jsonl; those of --split val are only printed. An interrupted run continues, and what is
stored is not measured again.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from depthzoo import create_model
from depthzoo.metrics import PROTOCOLS, DepthMetrics
from depthzoo.prediction import select_device
from train import records
from train.arguments import command, parse_size
from train.config import TrainConfig, load_recipe
from train.data import Sources
from train.evaluation import default_protocol, predict_frames
from train.loop import Run, RunOptions
from train.records import RESULTS, Row
from train.reproduction.claims import ENCODERS, ROWS, judge
from train.reproduction.measures import BESIDE, EDGES, LINES, PEAK, band_power, edge_f1
from train.shards import ShardDataset

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "reproduction"
METRICS = ("abs_rel", "rmse", "d1", "edge_f1", "lines", "peak")


def configure(name: str, args: argparse.Namespace, seed: int) -> TrainConfig:
    """Return the configuration of a row: its recipe, with the values of the flags.

    ``--epochs`` applies to rows from scratch. A row that starts from another one keeps its own.
    """
    path = RECIPES / f"{name}.toml"
    start = load_recipe(path).init
    return load_recipe(
        path,
        seed=seed,
        size=args.size,
        batch_size=args.batch_size,
        frames=args.frames,
        epochs=None if start else args.epochs,
        model_options=None if args.width is None or name in ENCODERS else {"width": args.width},
        encoder_weights=args.encoder_weights if name in ENCODERS else None,
        init=str(args.runs / f"seed{seed}" / start) if start else None,
    )


def train(config: TrainConfig, data: Path, out: Path, device: torch.device) -> Path:
    """Train a row, or continue its training, and return its last weights.

    Raises:
        KeyboardInterrupt: training was interrupted; what is done is saved.
        ValueError: ``out`` holds a run of other settings.
    """
    resume = (out / "checkpoint.safetensors").exists()
    if resume and load_recipe(out / "config.toml") != config:
        raise ValueError(f"{out} holds a run of other settings; give another --runs, or remove it")
    run = Run(config, Sources(data), out, RunOptions(device, resume=resume))
    if run.state.step < run.last_step:
        run.train()
    if run.state.step < run.last_step:
        raise KeyboardInterrupt
    return out / "last.safetensors"


@torch.inference_mode()
def measure(config: TrainConfig, weights: Path, dataset: ShardDataset, device: torch.device) -> Row:
    """Measure the weights of a row.

    Edges, lines and peak are measured on the depth as the network returns it, against the target averaged to that
    size: edges in the pixels of the protocol, lines and peak in frames whose target is valid everywhere.

    Raises:
        ValueError: there is no such frame.
    """
    model = create_model(config.model, weights=weights).to(device).eval()
    raw: list[Tensor] = []

    def predict(image: Tensor) -> Tensor:
        raw[:] = [model(image.to(device)).float().cpu()]
        return raw[0]

    protocol = PROTOCOLS[default_protocol(dataset)]
    metrics, edges = DepthMetrics(protocol), []
    bands = (LINES, PEAK, BESIDE)
    predicted, true = np.zeros(len(bands)), np.zeros(len(bands))
    for frames in predict_frames(predict, dataset, config.size):
        metrics.update(frames.depth, frames.target)
        depth = raw[0]
        target = interpolate(frames.target, depth.shape[-2:], mode="area")
        valid = interpolate(protocol.valid(frames.target).float(), depth.shape[-2:], mode="area") == 1
        edges.append(torch.stack([edge_f1(depth, target, valid, metres) for metres in EDGES], 1))
        whole = (frames.target > 0).flatten(1).all(1)
        if whole.any():
            predicted += [float(band_power(depth[whole], band).sum()) for band in bands]
            true += [float(band_power(target[whole], band).sum()) for band in bands]
    if not true.all():
        raise ValueError(
            f"no frame of the {dataset.split} split has a target without holes, which lines need"
        )
    found = metrics.compute()["per_image"]
    lines, peak, beside = predicted / true
    values = {key: found[key] for key in ("abs_rel", "rmse", "d1")}
    values |= {"edge_f1": float(torch.cat(edges).nanmean(0).mean()), "lines": lines, "peak": peak / beside}
    return {key: round(float(value), 5) for key, value in values.items()}


def run_rows(args: argparse.Namespace, dataset: ShardDataset, device: torch.device) -> list[Row]:
    """Train and measure the rows that are not stored yet. Store each at once, and return all."""
    found = []
    for seed in args.seeds:
        for name in args.rows:
            config = configure(name, args, seed)
            height, width = config.size
            settings = {"row": name, "seed": seed, "split": args.split, "height": height, "width": width}
            settings |= {"epochs": args.epochs, "batch": config.batch_size, "frames": config.frames or None}
            settings |= {"model_width": args.width, "encoder_weights": args.encoder_weights}
            row = records.provenance(device) | settings | {"model": config.model, "count": len(dataset)}
            stored = records.find(args.out, row) if args.split == "test" else None
            if stored is None:
                if config.init and not Path(config.init).is_file():
                    raise ValueError(
                        f"row {name} starts from {Path(config.init).parent.name}: train that too"
                    )
                weights = train(config, args.data, args.runs / f"seed{seed}" / name, device)
                row |= measure(config, weights, dataset, device)
                if args.split == "test":
                    records.store(args.out, [row])
            found.append(stored or row)
            figures = "  ".join(f"{key} {found[-1][key]:.3f}" for key in METRICS)
            print(f"seed {seed}  {name:<11} {figures}", flush=True)
    return found


def table(rows: Sequence[Row]) -> str:
    """Return the means over the seeds, a line per row."""
    lines = [f"{'':<11}" + "".join(f"{key:>10}" for key in METRICS) + "  seeds"]
    for name in dict.fromkeys(row["row"] for row in rows):
        same = [row for row in rows if row["row"] == name]
        means = [statistics.fmean(row[key] for row in same) for key in METRICS]
        lines.append(f"{name:<11}" + "".join(f"{mean:>10.3f}" for mean in means) + f"{len(same):>7}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m train.reproduction", description=summary)
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS)
    )
    main.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    main.add_argument(
        "--runs", type=Path, default=Path("runs/reproduction"), metavar="DIR", help="of the training"
    )
    main.add_argument("--split", choices=("val", "test"), default="test", help="val: only printed")
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--out", type=Path, default=RESULTS / "reproduction.jsonl", metavar="FILE")
    instead = main.add_argument_group("instead of the recipes' values, in all rows")
    instead.add_argument("--size", type=parse_size, metavar="HxW")
    instead.add_argument("--epochs", type=int, metavar="N", help="of the rows from scratch")
    instead.add_argument("--frames", type=int, metavar="N", help="train frames")
    instead.add_argument("--batch-size", type=int, metavar="N")
    instead.add_argument(
        "--width", type=int, metavar="N", help="of the U-Nets (default: 64); narrow for a CPU"
    )
    instead.add_argument(
        "--encoder-weights", metavar="imagenet|none|PATH", help=f"of {' and '.join(ENCODERS)} (default: none)"
    )
    return main


def run(args: argparse.Namespace) -> int:
    args.rows = sorted(set(args.rows), key=ROWS.index)
    dataset = ShardDataset(args.data, args.split)
    rows = run_rows(args, dataset, select_device(args.device))
    print(f"\n{args.split}, {len(dataset)} frames\n{table(rows)}\n")
    for verdict in judge(rows):
        claim, (better, other) = verdict.claim, verdict.means
        print(
            f"{verdict.word:<6} {claim.text}: {claim.metric} {better:.3f} ({claim.better}) against {other:.3f} "
            f"({claim.other}), better in {verdict.wins} of {len(verdict.pairs)} seeds"
        )
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
