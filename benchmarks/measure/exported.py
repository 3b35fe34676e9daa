"""ONNX files of the zoo, exported once for several benchmarks: one that has become stale is not met again."""

import hashlib
import json
import sys
import time
from pathlib import Path

from depthzoo.models import DepthModel
from export.facts import describe
from export.to_onnx import export_onnx

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "out" / "onnx"
# What decides over a file beside the weights.
SOURCES = ("depthzoo/models/*.py", "export/*.py")


def exported(
    model: DepthModel,
    precision: str,
    folder: Path = FILES,
    weights_file: Path | None = None,
    data: Path | None = None,
) -> Path:
    """The file of a model, of any size and batch, exported where there is none yet. INT8 takes minutes.

    Args:
        model: its weights are those of ``weights_file``, or random ones of seed 0.
        precision: "fp32", "fp16" or "int8".
        folder: where files are kept; it is made.
        weights_file: the file of the weights.
        data: shards to calibrate INT8 on; without them synthetic rooms.

    Raises:
        ExportError: a file that differs too much from PyTorch.
    """
    path = folder / f"{model.name}_{precision}-{key(model, precision, weights_file, data)}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"exporting {path.name} ...", end=" ", file=sys.stderr, flush=True)
        started = time.perf_counter()
        export_onnx(model, path, precision=precision, data=data, weights_file=weights_file)
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return path


def key(model: DepthModel, precision: str, weights_file: Path | None, data: Path | None) -> str:
    """Twelve digits that change with all that a file depends on.

    That is what the file would say of itself (sha256 of the weights, precision, versions of the libraries), the
    sources of the network and of the export, and for INT8 the data.
    """
    digest = hashlib.sha256(
        json.dumps(describe(model, precision=precision, weights_file=weights_file), sort_keys=True).encode()
    )
    for pattern in SOURCES:
        for source in sorted(ROOT.glob(pattern)):
            digest.update(source.read_bytes())
    if precision == "int8" and data is not None:
        digest.update((data / "dataset.json").read_bytes())
    return digest.hexdigest()[:12]
