"""Result files of a machine that does not exist, for what reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

VERSIONS = {"torch": "2.15.0", "depthzoo": "0.1.0", "python": "3.11.7"}
PARAMETERS, GFLOP = 3_479_473, 4.92


def made_facts(command: str, gpu: str | None = None) -> dict[str, Any]:
    """What ``benchmarks.record.facts`` would say there."""
    machine: dict[str, Any] = {
        "device": "cpu",
        "processor": "Z80",
        "cores": 8,
        "threads": 2,
        "load_before": 0.25,
    }
    if gpu:
        machine |= {"device": "cuda", "gpu": gpu, "driver": "580.1", "cuda": "13.0", "cudnn": 91300}
    return {"machine": machine, "versions": VERSIONS, "commit": "0123456789abcdef+", "command": command}


def made_row(
    model: str, backend: str, median: float, precision: str = "fp32", **others: Any
) -> dict[str, Any]:
    """A row of latency."""
    row = {
        "model": model,
        "peer": False,
        "backend": backend,
        "precision": precision,
        "size": [480, 640],
        "batch": 1,
        "parameters": PARAMETERS,
        "gflop": GFLOP,
        "bytes": 2e8,
        "first": 250.0,
        "ready": None,
        "median": median,
        "quickest": 0.9 * median,
        "slowest": 1.5 * median,
        "runs": 30,
        "images_per_s": 1000 / median,
        "peak_memory": 300 * 2**20,
        "floor": 25.0,
        "percent_of_floor": 2500 / median,
    }
    return row | others


def made_latency(
    gpu: str | None = None, size: tuple[int, int] = (480, 640), scale: float = 1.0
) -> dict[str, Any]:
    """A run of latency: a light model in three ways, a peer in one."""
    at = {"size": list(size)}
    rows = [
        made_row("unet_mobilenet_v3", "eager", 100.0 * scale, **at),
        made_row("unet_mobilenet_v3", "onnxruntime", 50.0 * scale, ready=80.0, **at),
        made_row(
            "unet_mobilenet_v3", "onnxruntime", 20.0 * scale, "int8", floor=None, percent_of_floor=None, **at
        ),
        made_row(
            "smp Unet(resnet50)", "eager", 800.0 * scale, peer=True, parameters=32_521_105, gflop=71.0, **at
        ),
    ]
    known = {"gflops": {"fp32": 197.2}, "gbytes": 12.0, "library": {"fp32": "numpy"}}
    about = {
        "size": list(size),
        "batch": 1,
        "ceiling": known,
        "rows": rows,
        "missing": {"compile": "no compiler"},
    }
    return made_facts(f"python benchmarks/latency.py --size {size[0]}x{size[1]}", gpu) | about


def made_training() -> list[dict[str, Any]]:
    """Two runs of training: its speed, and the largest batches."""
    common = {"lowest": 1.0, "highest": 9.0, "precision": "fp32", "memory_by": "resident set"}
    seed = {
        "model": "unet",
        "way": "seed",
        "batch": 4,
        "images_per_s": 2.0,
        "peak_memory": 4 * 2**30,
        "times_seed": 1,
    }
    ours = seed | {
        "way": "ours",
        "images_per_s": 7.0,
        "peak_memory": 2**30,
        "times_seed": 3.5,
        "memory_of_seed": 0.25,
    }
    largest = [
        {
            "model": "unet",
            "memory": card * 2**30,
            "recompute": again,
            "batch": card * (1 + again),
            "by": "counted",
        }
        for card in (16, 80)
        for again in (False, True)
    ]
    about = made_facts("python benchmarks/training.py") | {"size": [96, 128], "missing": {}}
    return [
        about | {"rows": [seed | common, ours | common], "largest_batch": []},
        about | {"rows": [], "largest_batch": largest},
    ]


def made_scaling() -> list[dict[str, Any]]:
    """Throughput that falls as pixels grow, and does not care for the batch."""
    about = made_facts("python benchmarks/scaling.py") | {"model": "unet", "what": "training"}
    rows = {
        "pixels": [(1000, 8.0), (2000, 4.0), (4000, 2.0)],
        "batch": [(1, 3.0), (2, 3.0)],
        "workers": [(0, 50.0), (1, 60.0)],
    }
    points = {
        over: [{"value": value, "images_per_s": rate} for value, rate in each] for over, each in rows.items()
    }
    pixels = about | {"over": "pixels", "size": None, "batch": 4, "rows": points["pixels"]}
    batch = about | {"over": "batch", "size": [96, 128], "batch": None, "rows": points["batch"]}
    loader = {
        "model": "loader",
        "what": "augmented batches",
        "size": [96, 128],
        "batch": 4,
        "from memory": 70.0,
    }
    workers = about | loader | {"over": "workers", "rows": points["workers"]}
    return [
        pixels | {"exponent": 1.0, "exponent_at_the_end": 1.0, "missing": {}},
        batch | {"exponent": 0.0, "exponent_at_the_end": 0.0, "missing": {"4": "out of memory"}},
        workers | {"exponent": None, "exponent_at_the_end": None, "missing": {}},
    ]


def store(folder: Path, name: str, *runs: dict[str, Any]) -> None:
    """Writes a result file."""
    (folder / name).write_text(json.dumps({"runs": runs}), encoding="utf-8")


@pytest.fixture
def made_results(tmp_path: Path) -> Path:
    """A folder with what was measured on a CPU only."""
    folder = tmp_path / "results"
    folder.mkdir()
    store(folder, "latency.cpu.json", made_latency(), made_latency(size=(192, 256), scale=0.2))
    store(folder, "training.cpu.json", *made_training())
    store(folder, "scaling.cpu.json", *made_scaling())
    return folder


@pytest.fixture
def gpu_results(made_results: Path) -> Path:
    """The same, and latency on two GPUs."""
    runs = [made_latency(gpu, scale=scale) for gpu, scale in (("Voodoo 2", 0.1), ("Voodoo 3", 0.05))]
    store(made_results, "latency.cuda.json", *runs)
    return made_results
