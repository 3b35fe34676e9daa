"""Does an exported file still see as well? fp32, fp16 and INT8 files by the evaluation that PyTorch goes through.

    python benchmarks/export_accuracy.py [NAME...] --data DIR [--split test]

DIR is a data set of ``train.prepare``; without a NAME all models that have trained weights. Each is exported in each
precision, INT8 calibrated on the train split, and run over the split by onnxruntime on the CPU. AbsRel may move by
0.1%, 1% and 3% of PyTorch's. The figures of the test split go into results/export_accuracy.json, where those of other
models stay; choices are made on --split val, which is only printed.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's export and train.
    sys.path.insert(0, str(ROOT))

import onnxruntime  # noqa: E402
import torch  # noqa: E402

from depthzoo import weights as zoo_weights  # noqa: E402
from depthzoo.models import (  # noqa: E402
    DepthModel,
    create_model,
    get_builder,
    list_models,
)
from export.facts import working_size  # noqa: E402
from export.latency import processor  # noqa: E402
from export.to_onnx import export_onnx  # noqa: E402
from train.arguments import command  # noqa: E402
from train.cards import commit, versions  # noqa: E402
from train.evaluate import default_protocol, evaluate  # noqa: E402
from train.inference import torch_predict  # noqa: E402
from train.onnx_network import OnnxNetwork  # noqa: E402
from train.shards import ShardDataset, write_json  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "export_accuracy.json"
# What AbsRel may move by, as a share of PyTorch's.
LIMITS = {"fp32": 0.001, "fp16": 0.01, "int8": 0.03}
SHOWN = ("abs_rel", "rmse", "d1")


def measure(name: str, file: Path, data: Path, split: str) -> dict[str, Any]:
    """The figures of one model: ``torch``, then each precision with how far its AbsRel moved.

    Args:
        name: of the model.
        file: its weights.
        data: the data set.
        split: "val" or "test".
    """
    model = create_model(name, weights=file)
    dataset = ShardDataset(data, split)
    known = figures(model, model, dataset)
    rows: dict[str, Any] = {"torch": known}
    show(name, "torch", known)
    with tempfile.TemporaryDirectory() as folder:
        for precision, limit in LIMITS.items():
            path = Path(folder, f"{name}_{precision}.onnx")
            parity = export_onnx(model, path, precision=precision, data=data, weights_file=file)
            network = OnnxNetwork(path)
            row = figures(model, network, dataset)
            moved = row["abs_rel"] / known["abs_rel"] - 1
            row |= {"moved": float(f"{moved:.2e}"), "limit": limit, "holds": abs(moved) < limit}
            row |= {"bytes": path.stat().st_size, "parity": parity.facts()}
            if "calibration" in network.metadata:
                row["calibration"] = network.metadata["calibration"]
            rows[precision] = row
            show(name, precision, row)
    return {
        "weights": file.name,
        "size": list(working_size(model, None)),
        "count": len(dataset),
        "protocol": default_protocol(dataset),
        "truth": dataset.info.get("truth", "as stored"),
        "rows": rows,
    }


def figures(model: DepthModel, network: DepthModel | OnnxNetwork, dataset: ShardDataset) -> dict[str, Any]:
    """Means over the pictures."""
    predict = torch_predict(network, torch.device("cpu"))
    results, _ = evaluate(predict, dataset, working_size(model, None), default_protocol(dataset))
    return {key: float(f"{results['per_image'][key]:.6g}") for key in SHOWN}


def show(name: str, kind: str, row: dict[str, Any]) -> None:
    """A line of the table."""
    text = f"{name:<20} {kind:<6}" + "".join(f" {row[key]:9.4f}" for key in SHOWN)
    if "moved" in row:
        verdict = "" if row["holds"] else "  OVER"
        text += f" {row['moved']:+9.3%} (limit {row['limit']:.1%}){verdict} {row['bytes'] / 1e6:8.1f} MB"
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="export_accuracy.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("names", nargs="*", metavar="NAME", help="of the zoo (default: all with weights)")
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--split", default="test", choices=("val", "test"))
    main.add_argument("--out", type=Path, default=RESULT, metavar="FILE", help=f"default: {RESULT.name}")
    return main


def run(args: argparse.Namespace) -> int:
    for name in args.names:
        get_builder(name)
    files = {name: zoo_weights.find(name, "DEFAULT") for name in args.names or list_models(pretrained=True)}
    ShardDataset(args.data, args.split)
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: the folder {args.out.parent} does not exist")
    state, failed = commit(), 0
    print(f"{'':<27}" + "".join(f" {name:>9}" for name in SHOWN) + f" {'moved':>9}")
    for name, file in files.items():
        report = measure(name, file, args.data, args.split)
        failed += sum(not row.get("holds", True) for row in report["rows"].values())
        if args.split != "test":
            continue
        call = shlex.join(["python", "benchmarks/export_accuracy.py", name, "--data", "DIR"])
        report |= {"command": call, "commit": state, "processor": processor()}
        report["versions"] = versions() | {"onnxruntime": onnxruntime.__version__}
        stored = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        write_json(args.out, {"models": stored.get("models", {}) | {name: report}, "limits": LIMITS})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
