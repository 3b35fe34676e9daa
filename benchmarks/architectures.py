"""Counts parameters and operations of every architecture into results/architectures.json.

GFLOP are those of one 480x640 picture, a multiply-add as two, by torch's own counter.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import depthzoo
from train.shards import write_json

RESULT = Path(__file__).resolve().parent / "results" / "architectures.json"
SIZE = (480, 640)


def count(name: str) -> dict[str, Any]:
    """Parameters and GFLOP of one architecture."""
    model = depthzoo.create_model(name, weights=None).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *SIZE))
    gflop = counter.get_total_flops() / 1e9
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflop": round(gflop, 2)}


def main() -> None:
    """Counts all and prints them."""
    models = {}
    for name in depthzoo.list_models():
        models[name] = count(name)
        print(f"{name:<20}{models[name]['parameters']:>12,}{models[name]['gflop']:>9.1f} GFLOP")
    write_json(RESULT, {"size": list(SIZE), "torch": torch.__version__, "models": models})


if __name__ == "__main__":
    main()
