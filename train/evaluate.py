"""The evaluation protocol of NYU Depth V2, for a model of the zoo or a file of weights.

python -m train.evaluate unet_resnet50 --data DIR [--split test] [--flip] [--card weights]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from depthzoo.data.shards import ShardDataset
from depthzoo.metrics import METRICS, PROTOCOLS, DepthMetrics
from depthzoo.predictor import resize_depth, resize_image, select_device, working_size
from train.arguments import command, parse_size
from train.cards import load_any, make_card, store_weights

Predict = Callable[[Tensor], Tensor]
BATCH = 4


def torch_predict(model: nn.Module, device: torch.device, flip: bool = False) -> Predict:
    """(N, 3, h, w) float in [0, 1] to (N, 1, h, w) metres; with ``flip`` the mean with the mirrored picture's."""

    def predict(image: Tensor) -> Tensor:
        image = image.to(device)
        depth = model(image)
        if flip:
            depth = (depth + model(image.flip(-1)).flip(-1)) / 2
        return depth.float().cpu()

    return predict


@torch.inference_mode()
def evaluate(
    predict: Predict,
    dataset: ShardDataset,
    size: tuple[int, int],
    protocol: str = "eigen",
    progress: bool = True,
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Runs a predictor over a split: the whole frame in, the depth resized to the truth.

    Args:
        predict: see :func:`torch_predict`.
        dataset: the split.
        size: working size (H, W).
        protocol: "eigen" or "full".
        progress: a bar on a terminal.

    Returns:
        What ``DepthMetrics.compute`` gives, and the figures of each picture (N, 9).
    """
    metrics = DepthMetrics(PROTOCOLS[protocol])
    rows = []
    starts = range(0, len(dataset), BATCH)
    for start in tqdm(starts, desc=f"evaluating {dataset.split}", disable=None if progress else True):
        images, truths = [], []
        for index in range(start, min(start + BATCH, len(dataset))):
            image, millimetres = dataset[index]
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0)
            images.append(
                resize_image(pixels, working_size(image.shape[0], image.shape[1], size)).float() / 255
            )
            truths.append(torch.from_numpy(millimetres.astype("float32"))[None, None] / 1000)
        truth = torch.cat(truths)
        depth = resize_depth(predict(torch.cat(images)), truth.shape[-2:])
        rows.append(metrics.update(depth, truth))
    return metrics.compute(), torch.cat(rows)


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as lines of text, a row for each way of averaging."""
    lines = ["            " + "".join(f"{name:>9}" for name in METRICS)]
    for way, figures in results.items():
        lines.append(f"{way:<12}" + "".join(f"{figures[name]:9.3f}" for name in METRICS))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__.splitlines()[0])
    main.add_argument("model", metavar="NAME|RUN|FILE.safetensors")
    main.add_argument("--weights", default="DEFAULT", metavar="TAG", help="tag, when a NAME is given")
    main.add_argument("--data", type=Path, required=True, metavar="DIR")
    main.add_argument("--split", default="test", choices=("val", "test"))
    main.add_argument("--protocol", default="eigen", choices=sorted(PROTOCOLS))
    main.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    main.add_argument(
        "--size", type=parse_size, metavar="HxW", help="working size (default: the weights' own)"
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    main.add_argument(
        "--card",
        type=Path,
        metavar="DIR",
        help="store the weights there with a card of figures of the test split, both with and without --flip, "
        "and enter them in the manifest",
    )
    main.add_argument("--tag", help="tag under which --card stores (default: the weights' own)")
    return main


def run(args: argparse.Namespace) -> int:
    if args.card and (args.split != "test" or args.protocol != "eigen" or args.size):
        raise ValueError(
            "--card states the test split by the Eigen protocol at the weights' size; drop the others"
        )
    device = select_device(args.device)
    dataset = ShardDataset(args.data, args.split)
    model = load_any(args.model, args.weights).to(device).eval()
    size = args.size or tuple((model.card or {}).get("size", (480, 640)))
    results: dict[str, Any] = {}
    for flip in (False, True) if args.card else (args.flip,):
        figures, _ = evaluate(torch_predict(model, device, flip), dataset, size, args.protocol)
        results["flip" if flip else "plain"] = figures
        print(
            f"{model.name} at {size[0]}x{size[1]}, {args.split} ({len(dataset)}), {args.protocol}, flip {flip}"
        )
        print(table(figures))
    truth = dataset.info.get("truth", "as stored")
    report = {
        "split": args.split,
        "count": len(dataset),
        "protocol": args.protocol,
        "truth": truth,
        **results,
    }
    if args.json:
        from depthzoo.data.shards import write_json

        write_json(args.json, report)
    if args.card:
        card = make_card(model, report, dataset.info)
        print(store_weights(model, card, args.card, args.tag or card["tag"]))
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
