"""Accuracy of exported files: fp32, fp16 and INT8, by the same evaluation as PyTorch.

    python -m benchmarks.accuracy [NAME...] --data DIR [--split test]

DIR is a data set of train.prepare, and also calibrates INT8. Each model with trained weights is exported in each
precision and evaluated with onnxruntime on the CPU. AbsRel may move by 0.1%, 1% and 3%; the exit code is 1 if one moves
further. Rows of the test split go to benchmarks/results/accuracy.jsonl after each file; --split val is only printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import depthzoo
from depthzoo import weights as zoo_weights
from export.to_onnx import PRECISIONS, export_onnx, working_size
from train import records
from train.arguments import command
from train.evaluation import default_protocol, evaluate, torch_predict
from train.onnx_network import OnnxNetwork
from train.records import RESULTS, Row
from train.shards import ShardDataset

# How far AbsRel may move, as a fraction of PyTorch's.
LIMITS = {"fp32": 0.001, "fp16": 0.01, "int8": 0.03}
METRICS = ("abs_rel", "rmse", "d1")
CPU = torch.device("cpu")


def metrics(network: Callable[[Tensor], Tensor], dataset: ShardDataset, size: tuple[int, int]) -> Row:
    """Return the means over the images of a split."""
    results, _ = evaluate(torch_predict(network, CPU), dataset, size, default_protocol(dataset))
    return {key: float(f"{results['per_image'][key]:.6g}") for key in METRICS}


def measure(name: str, args: argparse.Namespace, dataset: ShardDataset) -> bool:
    """Evaluate a model and its exported files; return whether all are within their limits."""
    file = zoo_weights.find(name, "DEFAULT")
    model = depthzoo.create_model(name, weights=file)
    height, width = working_size(model)
    row = records.provenance(CPU) | {"model": name, "weights": file.name, "split": args.split}
    row |= {"height": height, "width": width, "count": len(dataset)}
    expected = metrics(model, dataset, (height, width))
    rows = [row | {"backend": "eager", "precision": "fp32", "bytes": file.stat().st_size} | expected]
    show(rows[0])
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            path = Path(folder, f"{precision}.onnx")
            parity = export_onnx(model, path, precision=precision, data=args.data, weights_file=file)
            found = metrics(OnnxNetwork(path), dataset, (height, width))
            rows.append(
                row
                | {"backend": "onnxruntime", "precision": precision, "bytes": path.stat().st_size}
                | found
                | {"moved": found["abs_rel"] / expected["abs_rel"] - 1, "parity_max": parity.max}
            )
            show(rows[-1])
            if args.split == "test":
                records.store(args.out, rows)
    return all(abs(row["moved"]) < LIMITS[row["precision"]] for row in rows if "moved" in row)


def show(row: Row) -> None:
    """Print a line of the table."""
    figures = "  ".join(f"{key} {row[key]:.4f}" for key in METRICS)
    moved = f"  moved {row['moved']:+.3%} (limit {LIMITS[row['precision']]:.1%})" if "moved" in row else ""
    what = f"{row['model']:<20}{row['backend']:<12}{row['precision']:<6}"
    print(f"{what}{figures}{moved}  {row['bytes'] / 1e6:.1f} MB", flush=True)


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=summary)
    main.add_argument("names", nargs="*", metavar="NAME", help="default: all with trained weights")
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--split", default="test", choices=("val", "test"))
    main.add_argument("--out", type=Path, default=RESULTS / "accuracy.jsonl", metavar="FILE")
    return main


def run(args: argparse.Namespace) -> int:
    dataset = ShardDataset(args.data, args.split)
    held = [measure(name, args, dataset) for name in args.names or depthzoo.list_models(pretrained=True)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(command(parser(), run))
