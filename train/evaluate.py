"""Evaluate a model of the zoo, a run, a file of weights or an ONNX file on NYU Depth V2 or another data set.

python -m train.evaluate unet_resnet50 --data DIR [--split test] [--flip] [--sizes] [--worst 12] [--card weights]
python -m train.evaluate other.onnx --data DIR --size 384x384 [--median-scaling] [--per-frame frames.csv]
python -m train.evaluate FOLDER --data DIR

FOLDER holds predictions of another program: {key}.npy in metres or {key}.png in 16-bit millimetres, by the keys that
--per-frame writes.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import torch

from depthzoo.files import write_json
from depthzoo.metrics import METRICS, PROTOCOLS
from depthzoo.models import DepthModel
from depthzoo.prediction import select_device
from train.arguments import command, import_modules, parse_size
from train.cards import failures, find_any, is_stored, load_any, make_card, renew_card, store_weights
from train.evaluation import (
    SIZE_METRICS,
    SIZES,
    ErrorByDistance,
    PredictionFolder,
    default_protocol,
    evaluate,
    evaluate_sizes,
    protocol_for,
    ranked,
    torch_predict,
)
from train.onnx_network import OnnxNetwork, runs_on
from train.published_results import is_nyu_test, results_table
from train.samples import make_samples, write_strips
from train.shards import ShardDataset


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__.splitlines()[0])
    main.add_argument("model", metavar="NAME|RUN|FILE.safetensors|FILE.onnx|FOLDER")
    main.add_argument("--weights", default="DEFAULT", metavar="TAG", help="tag, if a NAME is given")
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--split", default="test", choices=("val", "test"))
    main.add_argument(
        "--protocol", default="eigen", choices=sorted(PROTOCOLS), help="full: whole frames of any size"
    )
    for flag, end in (("--min-depth", "smallest"), ("--max-depth", "largest")):
        text = f"{end} true depth that is counted, metres (default: the data set's)"
        main.add_argument(flag, type=float, metavar="M", help=text)
    main.add_argument("--flip", action="store_true", help="average with the mirrored image")
    main.add_argument(
        "--median-scaling",
        action="store_true",
        help="multiply each prediction by the ratio of the medians, for networks without a scale",
    )
    main.add_argument(
        "--size", type=parse_size, metavar="HxW", help="working size (default: that of the weights)"
    )
    sizes = ", ".join(f"{height}x{width}" for height, width in SIZES)
    main.add_argument(
        "--sizes", action="store_true", help=f"also at the working sizes {sizes}; implied by --card"
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument(
        "--import", dest="imports", nargs="+", default=[], metavar="NAME", help="modules that register models"
    )
    main.add_argument("--json", type=Path, metavar="FILE", help="write the metrics to a file")
    main.add_argument(
        "--per-frame", type=Path, metavar="FILE", help="write the metrics of each frame to a CSV file"
    )
    main.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="N",
        help="draw the N frames of highest AbsRel, beside --json or into out/",
    )
    main.add_argument(
        "--card",
        type=Path,
        metavar="DIR",
        help="store the weights in a folder with a card of test metrics, both with and without --flip; for weights "
        "that are already there only the card is written",
    )
    main.add_argument("--tag", help="tag under which --card stores (default: that of the weights)")
    return main


def check(args: argparse.Namespace, dataset: ShardDataset) -> None:
    """Refuse before the evaluation what could not be finished after it.

    Raises:
        ValueError: arguments that contradict each other or the data set.
    """
    usual = default_protocol(dataset)
    ranged = args.min_depth is not None or args.max_depth is not None
    others = args.size or ranged or args.median_scaling or args.split != "test" or args.protocol != usual
    if args.card and others:
        raise ValueError(
            f"--card states the test split by the protocol {usual!r}, at the weights' size, in the data set's depth "
            "range and without median scaling; drop the others"
        )
    if args.card and (args.model.endswith(".onnx") or holds_predictions(args.model)):
        raise ValueError(f"--card stores weights, which {args.model} does not hold; give the .safetensors")
    if holds_predictions(args.model) and (args.flip or args.sizes or args.size):
        raise ValueError("--flip, --size and --sizes need a network; a folder of predictions has none")
    if args.median_scaling and (args.worst or args.sizes):
        raise ValueError("--worst and --sizes show predictions as they are; drop --median-scaling")
    if args.worst < 0:
        raise ValueError(f"--worst must be 0 or more, not {args.worst}")
    stored = dataset.info["splits"][args.split].get("size")
    if args.protocol == "eigen" and stored and stored != [480, 640]:
        raise ValueError(
            f"the Eigen crop is for frames of 480x640, {args.data} has {stored[0]}x{stored[1]}; use --protocol full"
        )
    for path in filter(None, (args.json, args.per_frame)):
        path.parent.mkdir(parents=True, exist_ok=True)
    near, far = dataset.depth_range
    near = near if args.min_depth is None else args.min_depth
    far = far if args.max_depth is None else args.max_depth
    if not 0 < near < far < float("inf"):
        raise ValueError(
            f"--min-depth {near:g}, --max-depth {far:g}: expected 0 < smallest < largest, metres"
        )
    dataset.depth_range = near, far


def holds_predictions(name: str) -> bool:
    """Whether ``name`` is a folder of predictions rather than of a run."""
    folder = Path(name)
    return (
        folder.is_dir()
        and not (folder / "model.safetensors").is_file()
        and any(path.suffix in (".npy", ".png") for path in folder.iterdir())
    )


def load(
    args: argparse.Namespace,
) -> tuple[DepthModel | OnnxNetwork | PredictionFolder, torch.device, tuple[int, int] | None]:
    """Return what predicts, the device of its input, and the working size, None for stored predictions."""
    device = select_device(args.device)
    if holds_predictions(args.model):
        return PredictionFolder(Path(args.model)), device, None
    if args.model.endswith(".onnx"):
        if args.device is None and not runs_on(device):
            device = torch.device("cpu")
        network = OnnxNetwork(Path(args.model), device)
        if args.sizes and network.fixed:
            raise ValueError(f"--sizes: this file takes {network.size[0]}x{network.size[1]} only")
        return network, torch.device("cpu"), network.working_size(args.size)
    model = load_any(args.model, args.weights).to(device).eval()
    height, width = args.size or (model.card or {}).get("size", (480, 640))
    return model, device, (int(height), int(width))


def run(args: argparse.Namespace) -> int:
    import_modules(args.imports)
    dataset = ShardDataset(args.data, args.split)
    check(args, dataset)
    near, far = dataset.depth_range
    network, device, size = load(args)
    exact = isinstance(network, OnnxNetwork) and network.fixed
    truth = dataset.info.get("truth", "as stored")
    report: dict[str, Any] = {
        "model": network.name,
        "source": Path(args.model).name,
        "split": args.split,
        "protocol": args.protocol,
        "depth_range": [near, far],
        "truth": truth,
        "size": size and list(size),
        "median_scaling": args.median_scaling,
    }
    work = size or (480, 640)  # without a network it has no effect
    for flip in (False, True) if args.card else (args.flip,):
        predict = network if isinstance(network, PredictionFolder) else torch_predict(network, device, flip)
        by_distance = ErrorByDistance(protocol_for(dataset, args.protocol))
        results, rows = evaluate(
            predict, dataset, work, args.protocol, exact, by_distance, args.median_scaling
        )
        report["flip" if flip else "plain"] = results
        report["count"] = len(ranked(rows))
        report.setdefault("failures", failures(rows, dataset.keys, by_distance))
        invalid = len(dataset) - report["count"]
        frames = f"{report['count']} frames" + (f", {invalid} more have no valid depth" if invalid else "")
        print(
            f"{network.name}{f' at {size[0]}x{size[1]}' if size else ''}, {args.split} ({frames}, {truth} truth from "
            f"{near:g} to {far:g} m), {args.protocol}, {'with' if flip else 'without'} flip"
            f"{', median scaling' if args.median_scaling else ''}"
        )
        print(table(results, METRICS))
    if args.per_frame:
        with open(args.per_frame, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("key", *METRICS), *([k, *r] for k, r in zip(dataset.keys, rows.tolist(), strict=True))]
            )
        print(f"the metrics of each frame: {args.per_frame}")
    if args.sizes or args.card:
        assert not isinstance(network, PredictionFolder)
        report["sizes"] = evaluate_sizes(torch_predict(network, device), dataset, args.protocol)
        print(f"\nat other working sizes, without flip:\n{table(report['sizes'], SIZE_METRICS)}")
    if is_nyu_test(dataset.info, args.split, args.protocol):
        print(f"\nto compare with the per-image row:\n{results_table()}")
    if args.worst:
        worst = ranked(rows)[::-1][: args.worst]
        roles = [f"worst {place + 1}" for place in range(len(worst))]
        samples = make_samples(predict, dataset, worst, work, args.protocol, roles, exact)
        report["worst"] = [{"key": sample.key, **sample.metrics} for sample in samples]
        path = Path("out") / f"worst_{Path(args.model).stem}.png"
        path = args.json.with_suffix(".worst.png") if args.json else path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_strips(samples, path)
        print(f"the {len(samples)} worst frames: {path}")
    if args.json:
        write_json(args.json, report)
    if args.card:
        assert isinstance(network, DepthModel)
        card = make_card(network, report, dataset.info)
        path, tag = find_any(args.model, args.weights), args.tag or card["tag"]
        if is_stored(path, args.card, tag):
            print(renew_card(path, card))
        else:
            print(store_weights(network, card, args.card, tag))
    return 0


def table(results: dict[str, dict[str, float]], columns: tuple[str, ...]) -> str:
    """Return metrics as lines of text, a row for each way of measuring."""
    lines = [" " * 12 + "".join(f"{name:>9}" for name in columns)]
    for row, metrics in results.items():
        lines.append(f"{row:<12}" + "".join(f"{metrics[name]:9.3f}" for name in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(parser(), run))
