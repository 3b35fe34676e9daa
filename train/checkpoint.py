"""Checkpoints without pickle: one safetensors file, with everything that is not a tensor as JSON in its header."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from depthzoo.errors import one_line
from depthzoo.files import atomic_write


@dataclass
class Checkpoint:
    """What a run needs to continue: state dicts, its progress, and its configuration as TOML."""

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    state: dict[str, Any]  # JSON-serializable
    config: str


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        ValueError: it cannot be written, or a weight is not finite; an older checkpoint is kept.
    """
    for key, value in checkpoint.model.items():
        if not value.isfinite().all():
            raise ValueError(f"{path} is not written: {key} is not finite")
    tensors = {f"model/{key}": value for key, value in checkpoint.model.items()}
    tensors |= {f"average/{key}": value for key, value in (checkpoint.average or {}).items()}
    for index, entry in checkpoint.optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in entry.items()}
    header = {
        "state": json.dumps(checkpoint.state),
        "config": checkpoint.config,
        "param_groups": json.dumps(checkpoint.optimizer["param_groups"]),
    }
    # Copies: safetensors takes only dense tensors that share no memory.
    dense = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        with atomic_write(path) as part:
            part.write_bytes(safetensors.torch.save(dense, header))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {one_line(error)}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: it is missing, truncated or another kind of file.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    entries: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 - not a dict
                kind, key = name.split("/", 1)
                if kind == "optimizer":
                    index, key = key.split("/", 1)
                    entries.setdefault(int(index), {})[key] = file.get_tensor(name)
                else:
                    parts[kind][key] = file.get_tensor(name)
        state, groups = json.loads(header["state"]), json.loads(header["param_groups"])
        config = header["config"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {one_line(error)}") from None
    optimizer = {"state": entries, "param_groups": groups}
    return Checkpoint(parts["model"], parts["average"] or None, optimizer, state, config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
