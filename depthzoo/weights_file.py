"""One weights file: tensors and a card in safetensors, read whole or not at all, written atomically."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from depthzoo.download import WeightsError, atomic, reason

HEADER_KEY = "depthzoo"
FILE_KEYS = ("file", "sha256", "bytes")  # of a card, about the file that its header cannot know
# No dot: torch.hub reads the digits between a hyphen and a dot, and a dot tells a path from a tag.
TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card in a weights file's header; empty for a safetensors file of another origin.

    Raises:
        WeightsError: for a file that is missing, truncated or no safetensors file.
    """
    return _read(path)[0]


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weights file on the CPU, floating ones as float32, others as stored.

    Raises:
        WeightsError: as :func:`read_metadata`.
    """
    return _read(path, tensors=True)[1]


def _read(path: str | os.PathLike[str], tensors: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            card = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{os.fspath(path)}: no such file") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{os.fspath(path)}: not a readable safetensors file: {reason(error)}; "
            "it may be truncated, and pickled weights (.pth, .pt) are not read"
        ) from error
    if not isinstance(card, dict):
        raise WeightsError(
            f"{os.fspath(path)}: header key {HEADER_KEY!r} is {type(card).__name__}, expected a dict"
        )
    # A copy even of float32: the file is mapped, and must not stay open behind the tensors.
    return card, {
        n: t.to(torch.float32 if t.is_floating_point() else t.dtype, copy=True) for n, t in state.items()
    }


def load_into(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a weights file into ``model``, all of it or nothing; the model's dtypes and devices are kept.

    Raises:
        WeightsError: for an unreadable file, or tensors that are missing, unexpected, of another shape or
            kind, or non-finite; the first few are named.
    """
    metadata, state = _read(path, tensors=True)
    own = model.state_dict()
    shared = [name for name in own if name in state]
    problems = [
        _some("missing", (n for n in own if n not in state)),
        _some("unexpected", (n for n in state if n not in own)),
        _some(
            "another shape",
            (
                f"{n} {tuple(state[n].shape)} in the file and {tuple(own[n].shape)} in the model"
                for n in shared
                if state[n].shape != own[n].shape
            ),
        ),
        _some(
            "another kind",
            (
                f"{n} {state[n].dtype} in the file and {own[n].dtype} in the model"
                for n in shared
                if state[n].is_floating_point() != own[n].is_floating_point()
            ),
        ),
        _some("non-finite values", (n for n, t in state.items() if not t.isfinite().all())),
    ]
    if any(problems):
        name = getattr(model, "name", "") or type(model).__name__
        origin = metadata.get("model", name)
        says = f", its header says that it is for {origin!r}" if origin != name else ""
        what = "; ".join(filter(None, problems))
        raise WeightsError(f"{os.fspath(path)}: does not fit {name}{says}: {what}; nothing was loaded")
    model.load_state_dict(state, strict=True)


def _some(what: str, names: Iterable[str], limit: int = 3) -> str:
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return f"{what}: {', '.join(found[:limit])}{more}" if found else ""


def file_name(model: str, tag: str, sha256: str) -> str:
    """``{model}_{tag}-{sha8}.safetensors``.

    Raises:
        WeightsError: for a tag that is not made of small letters and digits, joined by hyphens.
    """
    if not TAG.fullmatch(tag):
        raise WeightsError(
            f"{model}: weights tag {tag!r}: expected small letters and digits, joined by hyphens"
        )
    return f"{model}_{tag}-{sha256[:8]}.safetensors"


def _name(model: nn.Module, card: dict[str, Any]) -> str:
    return getattr(model, "name", "") or str(card.get("model", ""))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        WeightsError: if it cannot be written.
    """
    try:
        with atomic(path) as file:
            file.write(data)
    except OSError as error:
        raise WeightsError(f"{path}: cannot write weights: {reason(error)}") from error


def write_weights(model: nn.Module, path: Path, card: dict[str, Any]) -> None:
    """Writes a weights file under a name of one's own; else as :func:`save`."""
    write_bytes(path, encode(model, card))


def encode(model: nn.Module, card: dict[str, Any]) -> bytes:
    """The content of a weights file; see :func:`save`, which names it too. ``card`` has the tag."""
    name = _name(model, card)
    if not name or card.get("model", name) != name:
        raise WeightsError(
            f"cannot save weights of model {name!r} with a card of model {card.get('model')!r}"
        )
    header = {key: value for key, value in card.items() if key not in FILE_KEYS} | {"model": name}
    if hasattr(model, "arguments"):
        # Without them a reload would build another range of depth around the same tensors.
        header["arguments"] = model.arguments
    try:
        metadata = {HEADER_KEY: json.dumps(header, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name}: the card is no JSON: {reason(error)}") from error
    buffers = {n for n, _ in model.named_buffers(remove_duplicate=False)}
    state: dict[str, Tensor] = {}
    bad: list[str] = []
    for key, value in model.state_dict().items():
        half = value.ndim >= 2 and key not in buffers
        dtype = (torch.float16 if half else torch.float32) if value.is_floating_point() else value.dtype
        # A copy of its own for each: safetensors refuses tensors that share memory.
        state[key] = value.detach().to("cpu", dtype, copy=True).contiguous()
        if not value.isfinite().all():
            bad.append(key)
        elif not state[key].isfinite().all():
            bad.append(
                f"{key} ({value.abs().max().item():.4g} overflows {str(dtype).removeprefix('torch.')})"
            )
    if bad:
        raise WeightsError(f"{name}: not saved, {_some('non-finite values', bad)}")
    return safetensors.torch.save(state, metadata)


def save(model: nn.Module, folder: str | os.PathLike[str], tag: str, card: dict[str, Any]) -> Path:
    """Writes ``{model}_{tag}-{sha8}.safetensors`` into ``folder``; equal tensors and card give equal bytes.

    Parameters of two and more dimensions are stored as float16; one-dimensional ones and all buffers as
    float32 (a running variance overflows float16); integers as they are.

    Args:
        model: its ``name`` is the model in the file's name, or else ``card["model"]``.
        folder: made where it is missing.
        tag: names the recipe ("nyu", "nyu-mse").
        card: JSON-able metadata for the header; ``model``, ``tag`` and the model's ``arguments`` are filled in,
            ``file``, ``sha256`` and ``bytes`` left out.

    Raises:
        WeightsError: for non-finite tensors (named; also after the cast), a card that is no JSON or is of
            another model, a bad tag, or a folder that cannot be written.
    """
    data = encode(model, {**card, "tag": tag})
    path = Path(folder) / file_name(_name(model, card), tag, hashlib.sha256(data).hexdigest())
    write_bytes(path, data)
    return path
