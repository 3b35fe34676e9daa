"""Do the claims of the project's first experiments hold? Trains one row for each, all alike, and measures them.

    python benchmarks/reproduce.py --data DIR [--rows NAME...] [--seeds 0 1 2] [--runs DIR] [--split test]

The rows are the recipes of train/recipes/reproduction: same frames, same number of images, same seed. Of each run the
last weights are measured, not the best ones. Beside AbsRel, RMSE and d1, at the size that the network gives: the F1 of
depth edges (Hu et al., WACV 2019); lines, the power of the depth at and near the Nyquist frequency relative to the
truth's; peak, how far that stands out from the frequencies below, relative to the truth's. Figures of the test split go
into results/reproduction.DEVICE.json, with a picture of all rows that are in --runs beside it; of --split val they are
only printed. A run that was interrupted goes on where it stopped, a finished one is not repeated.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train.
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.measure.claims import ENCODERS, ROWS, judge  # noqa: E402
from benchmarks.measure.record import RESULTS, facts, identity, read_runs, store_run  # noqa: E402
from benchmarks.measure.structure import BESIDE, EDGES, LINES, PEAK, band_energy, edge_f1  # noqa: E402
from depthzoo.errors import suggest  # noqa: E402
from depthzoo.metrics import METRICS, PROTOCOLS, DepthMetrics  # noqa: E402
from depthzoo.models import create_model  # noqa: E402
from depthzoo.predictor import resize_image, select_device  # noqa: E402
from depthzoo.visualize import Pixels, colorize, percentile_range  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.config import TrainConfig, load_recipe  # noqa: E402
from train.engine import Run, RunOptions  # noqa: E402
from train.evaluate import default_protocol  # noqa: E402
from train.feed import Sources  # noqa: E402
from train.inference import predict_frames  # noqa: E402
from train.shards import ShardDataset  # noqa: E402

RECIPES = ROOT / "train" / "recipes" / "reproduction"
SETTINGS = ("split", "size", "epochs", "frames", "batch_size", "width", "encoder_weights")
SHOWN = ("abs_rel", "rmse", "d1", "edge_f1", "lines", "peak")
PICTURES = 3


def recipe(name: str, args: argparse.Namespace, seed: int) -> TrainConfig:
    """A row's configuration: its recipe, with what the command says instead.

    ``--epochs`` is for the rows from scratch; one that goes on from another keeps its own.
    """
    own = load_recipe(RECIPES / f"{name}.toml")
    base = args.runs / f"seed{seed}"
    return load_recipe(
        RECIPES / f"{name}.toml",
        seed=seed,
        size=args.size,
        batch_size=args.batch_size,
        frames=args.frames,
        epochs=None if own.init else args.epochs,
        model_options=None if args.width is None or name in ENCODERS else {"width": args.width},
        encoder_weights=args.encoder_weights if name in ENCODERS else None,
        init=str(base / own.init) if own.init else None,
    )


def train(config: TrainConfig, args: argparse.Namespace, out: Path) -> Path:
    """The last weights of a run, trained as far as they are not yet.

    Raises:
        KeyboardInterrupt: it was told to stop before its end; what it has is saved.
        ValueError: ``out`` holds a run of another configuration.
    """
    resume = (out / "checkpoint.safetensors").exists()
    if resume and load_recipe(out / "config.toml") != config:
        raise ValueError(f"{out} holds a run of other settings; give another --runs, or remove it")
    run = Run(config, Sources(args.data), out, RunOptions(args.device, resume=resume, report=False))
    if run.progress.step < run.last_step:
        run.train()
    if run.progress.step < run.last_step:
        raise KeyboardInterrupt
    return out / "last.safetensors"


def resize_area(x: Tensor, size: torch.Size) -> Tensor:
    """Means of (N, 1, H, W) over the parts that the pixels of ``size`` cover."""
    return torch.nn.functional.interpolate(x, size, mode="area")


@torch.inference_mode()
def measure(
    config: TrainConfig, weights: Path, dataset: ShardDataset, device: torch.device
) -> dict[str, float]:
    """The protocol's figures, the F1 of edges (its mean over ``EDGES``, and each), lines and their peak.

    All but the protocol's figures are taken of the depth as the network gives it, against the truth averaged to that
    size: edges in the pixels that the protocol counts, lines in the whole depth of frames whose truth has no holes.

    Raises:
        ValueError: there is no such frame.
    """
    model = create_model(config.model, weights=weights).to(device).eval()
    given: list[Tensor] = []

    def predict(image: Tensor) -> Tensor:
        given[:] = [model(image.to(device)).float().cpu()]
        return given[0]

    protocol = PROTOCOLS[default_protocol(dataset)]
    metrics, edges = DepthMetrics(protocol), []
    bands = (LINES, PEAK, BESIDE)
    drawn, true = np.zeros(len(bands)), np.zeros(len(bands))
    for frames in predict_frames(predict, dataset, config.size):
        metrics.update(frames.depth, frames.truth)
        depth, size = given[0], given[0].shape[-2:]
        truth = resize_area(frames.truth, size)
        mask = resize_area(protocol.valid(frames.truth).float(), size) == 1
        edges.append(torch.stack([edge_f1(depth, truth, mask, metres) for metres in EDGES], 1))
        whole = (frames.truth > 0).flatten(1).all(1)
        if whole.any():
            drawn += [float(band_energy(depth[whole], band).sum()) for band in bands]
            true += [float(band_energy(truth[whole], band).sum()) for band in bands]
    if not true.all():
        raise ValueError(
            f"no frame of the {dataset.split} split has truth everywhere, which lines are held against"
        )
    found = metrics.compute()["per_image"]
    f1 = torch.cat(edges).nanmean(0)
    lines, peak, beside = drawn / true
    return {
        **{key: found[key] for key in METRICS},
        "edge_f1": float(f1.mean()),
        **{f"edge_f1_{metres:g}": float(value) for metres, value in zip(EDGES, f1, strict=True)},
        "lines": float(lines),
        "peak": float(peak / beside),
    }


def run_rows(args: argparse.Namespace, dataset: ShardDataset) -> dict[str, dict[str, Any]]:
    """Trains and measures; figures by row and seed, stored after each."""
    path = args.out
    settings = {key: getattr(args, key) for key in SETTINGS} | {
        "size": list(args.size) if args.size else None
    }
    run = {**facts(args.device), **settings, "count": len(dataset), "rows": {}}
    for other in read_runs(path) if args.split == "test" else []:
        if identity(other, SETTINGS) == identity(run, SETTINGS):
            run["rows"] = other["rows"]
    for seed in args.seeds:
        for name in args.rows:
            if str(seed) not in run["rows"].get(name, {}):
                config = recipe(name, args, seed)
                if config.init and not Path(config.init).is_file():
                    raise ValueError(
                        f"row {name} goes on from {Path(config.init).parent.name}: train that too"
                    )
                weights = train(config, args, args.runs / f"seed{seed}" / name)
                figures = measure(config, weights, dataset, args.device)
                run["rows"].setdefault(name, {})[str(seed)] = {
                    key: round(value, 5) for key, value in figures.items()
                }
                if args.split == "test":
                    store_run(path, run, SETTINGS)
            shown = run["rows"][name][str(seed)]
            print(
                f"seed {seed}  {name:<11}" + "".join(f"{key} {shown[key]:.3f}  " for key in SHOWN), flush=True
            )
    rows: dict[str, dict[str, Any]] = run["rows"]
    return rows


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Means over the seeds, with the spread between lowest and highest where there are several."""
    lines = [f"{'':<11}" + "".join(f"{key:>20}" for key in SHOWN) + "   seeds"]
    for name in sorted(rows, key=ROWS.index):
        cells = []
        for key in SHOWN:
            values = [figures[key] for figures in rows[name].values()]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}".rjust(20))
        lines.append(f"{name:<11}" + "".join(cells) + f"{len(rows[name]):8}")
    return "\n".join(lines)


def verdicts(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line for each claim that can be judged."""
    lines = []
    for verdict in judge(rows):
        ours, theirs = verdict.means()
        claim = verdict.claim
        lines.append(
            f"{verdict.word():<6} {claim.says}: {claim.figure} {ours:.3f} ({claim.better}) against {theirs:.3f} "
            f"({claim.other}), better in {verdict.wins} of {len(verdict.pairs)} seeds"
        )
    return "\n".join(lines)


@torch.inference_mode()
def draw(args: argparse.Namespace, dataset: ShardDataset, width: int = 256) -> Pixels:
    """Picture, truth and each row of the first seed that is in ``--runs``, in the same colours: uint8 RGB.

    Depth is shown as the network gives it, each of its pixels as a block, so that lines are seen.
    """
    seed = args.seeds[0]
    found = {name: args.runs / f"seed{seed}" / name / "last.safetensors" for name in ROWS}
    configs = {name: recipe(name, args, seed) for name, path in found.items() if path.is_file()}
    models = {
        name: create_model(config.model, weights=found[name]).eval() for name, config in configs.items()
    }
    indices = [(2 * i + 1) * len(dataset) // (2 * PICTURES) for i in range(min(PICTURES, len(dataset)))]
    tiles: list[list[tuple[str, Pixels]]] = []
    for index in indices:
        image, millimetres = dataset[index]
        truth = millimetres.astype(np.float32) / 1000
        depths = {"truth": truth}
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        for name, model in models.items():
            depths[name] = model(resize_image(tensor, configs[name].size).float() / 255)[0, 0].numpy()
        near, far = percentile_range(truth)
        row = [("picture", image)]
        row += [
            (name, colorize(np.clip(depth, 1e-3, None), near=near, far=far)) for name, depth in depths.items()
        ]
        tiles.append(row)
    height = round(width * tiles[0][0][1].shape[0] / tiles[0][0][1].shape[1])
    gap, title = 4, 20
    canvas = Image.new("RGB", (len(tiles[0]) * (width + gap), title + len(tiles) * (height + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for line, row in enumerate(tiles):
        for place, (caption, pixels) in enumerate(row):
            smooth = Image.Resampling.LANCZOS if caption == "picture" else Image.Resampling.NEAREST
            tile = Image.fromarray(pixels).resize((width, height), smooth)
            canvas.paste(tile, (place * (width + gap), title + line * (height + gap)))
            if not line:
                pen.text((place * (width + gap) + width // 2, 2), caption, "black", font, "ma")
    return np.asarray(canvas)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="reproduce.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--rows", nargs="+", default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)}")
    main.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    main.add_argument(
        "--runs", type=Path, default=Path("runs/reproduction"), metavar="DIR", help="of the training"
    )
    main.add_argument(
        "--split", choices=("val", "test"), default="test", help="val: measured and printed only"
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--out", type=Path, metavar="FILE", help="default: reproduction.DEVICE.json in results")
    instead = main.add_argument_group("instead of the recipes' values, in all rows")
    instead.add_argument("--size", type=parse_size, metavar="HxW")
    instead.add_argument("--epochs", type=int, metavar="N", help="of the rows from scratch")
    instead.add_argument("--frames", type=int, metavar="N", help="train frames")
    instead.add_argument("--batch-size", type=int, metavar="N")
    instead.add_argument(
        "--width", type=int, metavar="N", help="of the U-Nets (64): a narrower one is for a CPU"
    )
    instead.add_argument(
        "--encoder-weights", metavar="imagenet|none|PATH", help=f"of {' and '.join(ENCODERS)} (default: none)"
    )
    return main


def run(args: argparse.Namespace) -> int:
    for name in args.rows:
        if name not in ROWS:
            raise ValueError(f"unknown row {name!r}: {suggest(name, ROWS)}")
    args.rows = sorted(set(args.rows), key=ROWS.index)
    args.device = select_device(args.device)
    args.out = args.out or RESULTS / f"reproduction.{args.device.type}.json"
    dataset = ShardDataset(args.data, args.split)
    rows = run_rows(args, dataset)
    print(f"\n{args.split}, {len(dataset)} frames\n{table(rows)}\n\n{verdicts(rows)}".rstrip())
    picture = (args.out if args.split == "test" else args.runs / "val").with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(args, dataset)).save(picture)
    print(f"picture | truth | each row: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
