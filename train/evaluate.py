"""The evaluation protocol of NYU Depth V2, for a model of the zoo, a run, a file of weights or an ONNX file.

python -m train.evaluate unet_resnet50 --data DIR [--split test] [--flip] [--sizes] [--worst 12] [--card weights]
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.metrics import METRICS, PROTOCOLS, DepthMetrics
from depthzoo.models import DepthModel
from depthzoo.predictor import select_device
from train.anchors import anchor_table, is_nyu_test
from train.arguments import command, parse_size
from train.cards import find_any, is_stored, load_any, make_card, renew_card, store_weights
from train.failures import ByDistance, failures
from train.inference import Predict, predict_frames, rules, torch_predict
from train.onnx_network import OnnxNetwork, runs_on
from train.samples import make_samples, ranked, write_strips
from train.shards import ShardDataset, write_json

__all__ = ["Predict", "default_protocol", "evaluate", "table", "torch_predict"]
# Working sizes (H, W) of --sizes: a network is to serve every photograph. At the last one frames of NYU Depth V2 are
# fed as they are, as by a caller of the bare network.
SIZES = ((192, 256), (240, 320), (480, 640))
SHOWN = ("abs_rel", "rmse", "d1")


def default_protocol(dataset: ShardDataset) -> str:
    """ "eigen" where the frames are 480x640 as it wants them, else "full"."""
    return "eigen" if dataset.info["splits"][dataset.split].get("size") == [480, 640] else "full"


def evaluate(
    predict: Predict,
    dataset: ShardDataset,
    size: tuple[int, int],
    protocol: str = "eigen",
    progress: bool = True,
    exact: bool = False,
    by_distance: ByDistance | None = None,
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Runs a predictor over a split: the whole frame in, the depth resized to the truth.

    Args:
        predict: see :func:`torch_predict`.
        dataset: the split.
        size: working size (H, W).
        protocol: "eigen" or "full"; truth counts in the data set's depth range.
        progress: a bar on a terminal.
        exact: feed every picture at ``size`` itself, whatever its aspect.
        by_distance: adds up the errors too.

    Returns:
        What ``DepthMetrics.compute`` gives, and the figures of each picture (N, 9), NaN without valid truth.

    Raises:
        ValueError: naming a frame that cannot be decoded or whose prediction is not finite; frames that are not
            480x640 by the Eigen protocol.
    """
    metrics = DepthMetrics(rules(dataset, protocol))
    rows = []
    with tqdm(
        total=len(dataset),
        desc=f"evaluating {dataset.split}",
        unit="frame",
        disable=None if progress else True,
    ) as bar:
        for frames in predict_frames(predict, dataset, size, exact=exact):
            rows.append(metrics.update(frames.depth, frames.truth))
            if by_distance is not None:
                by_distance.update(frames.depth, frames.truth)
            bar.update(len(frames.indices))
    return metrics.compute(), torch.cat(rows)


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as lines of text, a row for each way of averaging."""
    lines = ["            " + "".join(f"{name:>9}" for name in METRICS)]
    for way, figures in results.items():
        lines.append(f"{way:<12}" + "".join(f"{figures[name]:9.3f}" for name in METRICS))
    return "\n".join(lines)


def at_sizes(predict: Predict, dataset: ShardDataset, protocol: str) -> dict[str, dict[str, float]]:
    """A card's "sizes": the per-image figures ``SHOWN`` at each of ``SIZES``, by "HxW"."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a size that the weights are not for
        for size in SIZES:
            figures, _ = evaluate(predict, dataset, size, protocol)
            found[f"{size[0]}x{size[1]}"] = {name: figures["per_image"][name] for name in SHOWN}
    return found


def sizes_table(sizes: dict[str, dict[str, float]]) -> list[str]:
    """What :func:`at_sizes` gives, as lines of text."""
    rows = [f"{size:<12}" + "".join(f"{row[name]:9.3f}" for name in SHOWN) for size, row in sizes.items()]
    return [" " * 12 + "".join(f"{name:>9}" for name in SHOWN), *rows]


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__.splitlines()[0])
    main.add_argument("model", metavar="NAME|RUN|FILE.safetensors|FILE.onnx")
    main.add_argument("--weights", default="DEFAULT", metavar="TAG", help="tag, when a NAME is given")
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--split", default="test", choices=("val", "test"))
    main.add_argument(
        "--protocol", default="eigen", choices=sorted(PROTOCOLS), help="full: the whole frame, of any size"
    )
    for flag, end in (("--min-depth", "least"), ("--max-depth", "largest")):
        main.add_argument(
            flag,
            type=float,
            metavar="M",
            help=f"{end} true depth that counts, metres (default: the data set's)",
        )
    main.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    main.add_argument(
        "--size", type=parse_size, metavar="HxW", help="working size (default: the weights' own)"
    )
    main.add_argument(
        "--sizes",
        action="store_true",
        help=f"also at the working sizes {', '.join(f'{h}x{w}' for h, w in SIZES)}; --card does so by itself",
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    main.add_argument("--worst", type=int, default=0, metavar="N", help="draw the N frames of highest AbsRel")
    main.add_argument(
        "--worst-out",
        type=Path,
        metavar="PNG",
        help="where (default: beside --json, else out/worst_MODEL.png)",
    )
    main.add_argument(
        "--card",
        type=Path,
        metavar="DIR",
        help="store the weights there with a card of figures of the test split, both with and without --flip, "
        "and enter them in the manifest; of weights that are there already, only the card is renewed",
    )
    main.add_argument("--tag", help="tag under which --card stores (default: the weights' own)")
    return main


def check(args: argparse.Namespace, dataset: ShardDataset) -> None:
    """Refuses before the long part what could not be finished after it."""
    usual = default_protocol(dataset)
    ranged = args.min_depth is not None or args.max_depth is not None
    if args.card and (args.split != "test" or args.protocol != usual or args.size or ranged):
        raise ValueError(
            f"--card states the test split by the protocol {usual!r}, at the weights' size and in the data set's depth "
            "range; drop the others"
        )
    if args.card and args.model.endswith(".onnx"):
        raise ValueError(
            "--card stores weights, and an ONNX file is not made into any; give the .safetensors"
        )
    if args.worst < 0:
        raise ValueError(f"--worst must be 0 or more, not {args.worst}")
    if args.worst_out and args.worst_out.suffix.lower() != ".png":
        raise ValueError(f"--worst-out {args.worst_out}: the name must end in .png")
    stored = dataset.info["splits"][args.split].get("size")
    if args.protocol == "eigen" and stored and stored != [480, 640]:
        raise ValueError(
            f"the Eigen crop is for frames of 480x640, {args.data} has {stored[0]}x{stored[1]}; use --protocol full"
        )
    for path in filter(None, (args.json, args.worst_out)):
        path.parent.mkdir(parents=True, exist_ok=True)


def choose_range(args: argparse.Namespace, dataset: ShardDataset) -> None:
    """Has truth count where ``--min-depth`` and ``--max-depth`` say.

    Raises:
        ValueError: they are no range.
    """
    near, far = dataset.depth_range
    near = near if args.min_depth is None else args.min_depth
    far = far if args.max_depth is None else args.max_depth
    if not 0 < near < far < float("inf"):
        raise ValueError(f"--min-depth {near:g}, --max-depth {far:g}: expected 0 < least < largest, metres")
    dataset.depth_range = near, far


def load(args: argparse.Namespace) -> tuple[DepthModel | OnnxNetwork, torch.device, tuple[int, int]]:
    """The network, the device that its input goes to, and the working size."""
    device = select_device(args.device)
    if args.model.endswith(".onnx"):
        if args.device is None and not runs_on(device):
            device = torch.device("cpu")
        network = OnnxNetwork(Path(args.model), device)
        return network, torch.device("cpu"), network.working_size(args.size)
    model = load_any(args.model, args.weights).to(device).eval()
    height, width = args.size or (model.card or {}).get("size", (480, 640))
    return model, device, (int(height), int(width))


def run(args: argparse.Namespace) -> int:
    dataset = ShardDataset(args.data, args.split)
    check(args, dataset)
    choose_range(args, dataset)
    near, far = dataset.depth_range
    network, device, size = load(args)
    if args.sizes and isinstance(network, OnnxNetwork) and network.fixed:
        raise ValueError(f"--sizes: this file takes {size[0]}x{size[1]} only")
    exact = isinstance(network, OnnxNetwork) and network.fixed
    truth = dataset.info.get("truth", "as stored")
    report: dict[str, Any] = {
        "model": network.name,
        "source": Path(args.model).name,
        "split": args.split,
        "count": len(dataset),
        "protocol": args.protocol,
        "depth_range": [near, far],
        "truth": truth,
        "size": list(size),
    }
    rows = torch.empty(0)
    for flip in (False, True) if args.card else (args.flip,):
        predict = torch_predict(network, device, flip)
        by_distance = ByDistance(rules(dataset, args.protocol))
        figures, rows = evaluate(predict, dataset, size, args.protocol, exact=exact, by_distance=by_distance)
        report["flip" if flip else "plain"] = figures
        report["count"] = len(ranked(rows))
        report.setdefault("failures", failures(rows, dataset.keys, by_distance))
        without = len(dataset) - report["count"]
        frames = f"{report['count']} frames" + (f", {without} more have no valid depth" if without else "")
        print(
            f"{network.name} at {size[0]}x{size[1]}, {args.split} ({frames}, {truth} truth from {near:g} to {far:g} "
            f"m), {args.protocol}, {'with' if flip else 'without'} flip"
        )
        print(table(figures))
    if args.sizes or args.card:
        report["sizes"] = at_sizes(torch_predict(network, device), dataset, args.protocol)
        print("\nat other working sizes, without flip:")
        print("\n".join(sizes_table(report["sizes"])))
    if is_nyu_test(dataset.info, args.split, args.protocol):
        print(f"\nto hold against the per-image row:\n{anchor_table()}")
    if args.worst:
        worst = ranked(rows)[::-1][: args.worst]
        roles = [f"worst {place + 1}" for place in range(len(worst))]
        samples = make_samples(predict, dataset, worst, size, args.protocol, roles, exact)
        report["worst"] = [{"key": sample.key, **sample.figures} for sample in samples]
        path = worst_path(args)
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


def worst_path(args: argparse.Namespace) -> Path:
    """Where the panel of the worst frames goes; its folder is made."""
    if args.worst_out:
        path: Path = args.worst_out
    elif args.json:
        path = args.json.with_suffix(".worst.png")
    else:
        path = Path("out") / f"worst_{Path(args.model).stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(command(parser(), run))
