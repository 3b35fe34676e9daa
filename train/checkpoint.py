"""Checkpoints that need no pickle: one safetensors file, tensors by name and the rest as JSON in its header."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from depthzoo.errors import one_line


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written."""


@dataclass
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        model: the network's state.
        average: the moving average's state, or None.
        optimizer: the optimizer's ``state_dict``.
        state: step, best figure, history; JSON-able and finite.
        config: the resolved configuration as TOML.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    state: dict[str, Any]
    config: str


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes aside, syncs, renames: at every moment there is a whole checkpoint or none.

    Raises:
        CheckpointError: it cannot be written, or holds a weight that is not finite, from which no run goes on; a
            checkpoint that is there stays as it is.
    """
    for key, value in checkpoint.model.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} is not written: {key} is not finite")
    tensors = {f"model/{key}": value for key, value in checkpoint.model.items()}
    if checkpoint.average is not None:
        tensors.update({f"average/{key}": value for key, value in checkpoint.average.items()})
    for index, entry in checkpoint.optimizer["state"].items():
        tensors.update({f"optimizer/{index}/{key}": value for key, value in entry.items()})
    header = {
        "state": json.dumps(checkpoint.state),
        "config": checkpoint.config,
        "param_groups": json.dumps(checkpoint.optimizer["param_groups"]),
    }
    # A folder of its own, since safetensors writes aside too, and a killed process leaves that behind.
    aside = path.with_name(path.name + ".part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        # A clone each: safetensors wants dense tensors that share no memory.
        save_file(
            {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
            aside / path.name,
            header,
        )
        with open(aside / path.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside / path.name, path)
    except (SafetensorError, OSError) as error:  # a full disk is a SafetensorError
        raise CheckpointError(f"{path} cannot be written: {one_line(error)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        CheckpointError: if it is cut short or something else.
    """
    model: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    entries: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 - not a dict
                kind, key = name.split("/", 1)
                tensor: Tensor = file.get_tensor(name)
                if kind == "optimizer":
                    index, key = key.split("/", 1)
                    entries.setdefault(int(index), {})[key] = tensor
                else:
                    (model if kind == "model" else average)[key] = tensor
        state = json.loads(header["state"])
        groups = json.loads(header["param_groups"])
        config = header["config"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from None
    optimizer = {"state": entries, "param_groups": groups}
    return Checkpoint(model, average or None, optimizer, state, config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
