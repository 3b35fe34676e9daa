"""What every result file says beside its figures, and where result files are.

A figure without the machine, the versions, the commit and the command that made it is worth nothing later.
"""

import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from export.latency import processor
from train.cards import commit, versions
from train.shards import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


def facts(
    device: torch.device, packages: Sequence[str] = (), argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The machine, the versions, the commit and the command.

    Args:
        device: on which the figures are measured.
        packages: names of installed distributions whose versions matter too; one that is not installed is left out.
        argv: the command's words, the script first; of this process by default. Folders are left out of them: they
            say nothing on another machine.

    Returns:
        "machine", "versions", "commit" and "command", JSON-able.
    """
    words = list(sys.argv if argv is None else argv)
    shown = [
        f"benchmarks/{Path(words[0]).name}",
        *(Path(word).name if "/" in word else word for word in words[1:]),
    ]
    return {
        "machine": machine(device),
        "versions": versions() | installed(packages),
        "commit": commit(),
        "command": shlex.join(["python", *shown]),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Of one device: what it is, PyTorch's threads, how busy the processor was before, and our priority there."""
    described: dict[str, Any] = {
        "device": device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "real_time_priority": real_time(),
        "settings": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "KMP_"))},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return described


def real_time() -> bool:
    """Whether this process goes before all others, so that the load of the machine says little."""
    return hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def driver() -> str | None:
    """Version of the NVIDIA kernel module, where there is one."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in line.split() if word[0].isdigit() and "." in word), None)


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of a result file; none where there is no file.

    Raises:
        ValueError: no such file of ours.
    """
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: not a result file: expected JSON with "runs"') from error


def store_run(path: Path, run: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Adds a run to a result file; it takes the place of one with the same settings on the same device.

    Args:
        path: the file; its folder must exist.
        run: :func:`facts` and the figures.
        keys: names of the settings in ``run`` that tell one run from another.
    """
    kept = [other for other in read_runs(path) if identity(other, keys) != identity(run, keys)]
    write_json(path, {"runs": [*kept, dict(run)]})


def is_stored(path: Path, run: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether the file has a run with the settings of ``run``, of any commit, on the same device."""
    return any(identity(other, keys) == identity(run, keys) for other in read_runs(path))


def identity(run: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The device and the settings of a run, as text."""
    where = run["machine"].get("gpu") or run["machine"]["processor"]
    return json.dumps([where, run["machine"]["threads"], [run.get(key) for key in keys]], sort_keys=True)
