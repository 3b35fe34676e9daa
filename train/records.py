"""Results: one flat JSON row per measurement, in JSON Lines files, each row with its own provenance."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch

from depthzoo.files import atomic_write
from train.cards import commit

Row: TypeAlias = dict[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
PACKAGES = ("depthzoo", "torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "transformers")
# What identifies a measurement: a new row replaces an old one that agrees in all of these.
KEY = (
    *("machine", "device", "threads", "model", "backend", "precision", "height", "width", "batch"),
    *("split", "row", "seed", "epochs", "frames", "model_width", "encoder_weights"),
)
STARTED = time.strftime("%Y-%m-%dT%H:%M:%S")


def provenance(device: torch.device) -> Row:
    """Return what every row holds beside its figures: machine, versions, commit, command and run.

    Rows of one process have the same "run". Only these were measured in turn with each other.
    """
    described: Row = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "run": STARTED,
        "commit": commit(),
        "command": command(sys.argv),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            described[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return described


def processor() -> str:
    """Return the name of the CPU and its vector instructions, as far as the system tells."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def command(argv: list[str]) -> str:
    """Return the command line of this process, without the folders of its arguments."""
    script = Path(argv[0]).resolve()
    parts = (
        script.with_suffix("").relative_to(RESULTS.parents[1]).parts
        if RESULTS.parents[1] in script.parents
        else ()
    )
    module = ".".join(part for part in parts if part != "__main__") or script.name
    return shlex.join(
        ["python", "-m", module, *(Path(word).name if "/" in word else word for word in argv[1:])]
    )


def load(path: Path) -> list[Row]:
    """Load the rows of a results file; none if it does not exist.

    Raises:
        ValueError: the file is not JSON Lines.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: not a results file: expected a JSON object per line") from error


def identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in KEY)


def find(path: Path, row: Row) -> Row | None:
    """Return the stored row with the identity of ``row``, of any commit."""
    return next((other for other in load(path) if identity(other) == identity(row)), None)


def store(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a results file. Each replaces a row with the same identity."""
    merged = {identity(row): row for row in load(path)}
    for row in rows:
        merged[identity(row)] = row
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in merged.values()), encoding="utf-8")
