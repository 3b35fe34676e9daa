"""Trained weights: which there are, where a file is found, and how it is read and written.

A weights file is ``{model}_{tag}-{first 8 digits of its sha256}.safetensors``. The metadata in its header holds one
JSON object, the card: model, tag, arguments, working size, data, recipe, metrics, terms. ``manifest.json`` lists the
published files: by model and by tag (the default first) ``file``, ``sha256``, ``bytes``, ``parameters``, ``size`` and
the main metrics.
"""

import http.client
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import safetensors
import safetensors.torch
import torch
import torch.hub
from torch import Tensor, nn

from depthzoo.errors import WeightsError, one_line, suggest
from depthzoo.files import atomic_write, sha256_of

RELEASE_URL = "https://github.com/org/depthzoo/releases/download/weights"
MANIFEST = Path(__file__).with_name("manifest.json")
BUNDLED = Path(__file__).resolve().parent.parent / "weights"
HEADER_KEY = "depthzoo"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {one_line(error)}") from error
    return content


def tags(model: str) -> tuple[str, ...]:
    """Return the tags of a model's trained weights, the default first; empty for a model without any."""
    return tuple(_read_json(MANIFEST).get(model, ()))


def card(model: str, tag: str = "DEFAULT") -> dict[str, Any]:
    """Return the card of a model's weights: in a checkout that in ``weights/``, elsewhere the manifest's entry.

    Raises:
        WeightsError: for a model without weights, or an unknown tag (the closest ones are suggested).
    """
    entry = _entry(model, tag)
    path = (BUNDLED / entry["file"]).with_suffix(".json")
    return entry | _read_json(path) if path.is_file() else entry


def _entry(model: str, tag: str) -> dict[str, Any]:
    """The manifest's entry of a model's weights, with the model and the tag."""
    manifest = _read_json(MANIFEST)
    if model not in manifest:
        raise WeightsError(
            f"{model}: no trained weights yet; "
            f"models with trained weights: {', '.join(sorted(manifest)) or 'none yet'}",
            "weights=None builds it untrained",
        )
    entries = manifest[model]
    found = next(iter(entries)) if tag == "DEFAULT" else tag
    if found not in entries:
        raise WeightsError(f"{model}: unknown weights {tag!r}: {suggest(tag, ['DEFAULT', *entries])}")
    return {"model": model, "tag": found, **entries[found]}


def find(model: str, weights: str | os.PathLike[str], *, progress: bool | None = None) -> Path:
    """Return the local file of a model's weights, verified, downloaded if necessary.

    Published weights are looked for in the checkout's ``weights/``, then in ``torch.hub.get_dir()/checkpoints``, then
    downloaded to the latter from ``RELEASE_URL`` or, if set, from the URL in ``DEPTHZOO_WEIGHTS_URL``; their
    digests are verified each time. A file given by its path is taken as it is.

    Args:
        model: name of the builder.
        weights: "DEFAULT", a tag, or the path of a file or of a run folder, which holds ``model.safetensors``. A string
            that is no tag is a path if it contains a dot or a slash, or exists.
        progress: show a progress bar during a download; if None, only when stderr is a terminal.

    Raises:
        WeightsError: if nothing is found, a digest differs (both are named), or a download fails.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise WeightsError(f"{model}: weights must be 'DEFAULT', a tag, a path or None, not {weights!r}")
    if is_path(model, weights):
        return _find_path(Path(weights).expanduser())
    entry = _entry(model, str(weights))
    bundled = BUNDLED / entry["file"]
    if bundled.is_file():
        return _verify(bundled, entry, "restore it, or delete it to download a good one")
    cached = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / entry["file"]
    if not cached.is_file():
        download(entry, cached, progress)
    return _verify(cached, entry, "delete it to download a good one")


def is_path(model: str, weights: Any) -> bool:
    """Whether ``weights`` of a model is a path rather than "DEFAULT" or a tag; see :func:`find`."""
    if not isinstance(weights, str):
        return isinstance(weights, os.PathLike)
    if weights == "DEFAULT" or weights in tags(model):
        return False
    return "." in weights or "/" in weights or os.sep in weights or os.path.exists(weights)


def _find_path(path: Path) -> Path:
    if path.is_dir():
        path /= "model.safetensors"
        if not path.is_file():
            raise WeightsError(
                f"{path.parent}: is a folder without model.safetensors; expected a run of train"
            )
    if not path.is_file():
        raise WeightsError(f"{path}: weights file does not exist; expected a .safetensors file")
    return path


def _verify(path: Path, entry: dict[str, Any], advice: str) -> Path:
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read weights: {one_line(error)}") from error
    if sha256 != entry["sha256"]:
        raise WeightsError(
            f"{path}: sha256 {sha256} ({path.stat().st_size} bytes), "
            f"expected {entry['sha256']} ({entry['bytes']} bytes); {advice}"
        )
    return path


def download(entry: dict[str, Any], path: Path, progress: bool | None = None) -> None:
    """Download published weights to ``path``; nothing stays of a download that fails or has another digest.

    Args:
        entry: of the manifest, with "file" and "sha256".
        path: of the file; its folder is created.
        progress: show a progress bar; if None, only when stderr is a terminal.

    Raises:
        WeightsError: for any failure; the message names the URL and the path.
    """
    base = os.environ.get("DEPTHZOO_WEIGHTS_URL") or RELEASE_URL
    url = f"{base.rstrip('/')}/{quote(entry['file'])}"
    show = sys.stderr.isatty() if progress is None else progress
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=entry["sha256"], progress=show)
    # RuntimeError is torch.hub's for a wrong digest.
    except (OSError, ValueError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot download {url}: {one_line(error)}; "
            f"put the file at {path}, or set DEPTHZOO_WEIGHTS_URL to a mirror",
            "weights=None builds an untrained model",
        ) from error


def model_of(path: str | os.PathLike[str]) -> str:
    """Return the name of the model that a weights file or a run folder is for.

    Raises:
        WeightsError: for an unreadable file, or one whose header does not say.
    """
    file = _find_path(Path(path).expanduser())
    name = read_metadata(file).get("model")
    if not isinstance(name, str):
        raise WeightsError(
            f"{file}: does not say which model it is for", "create_model(NAME, weights=FILE) loads it"
        )
    return name


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card in the header of a weights file; empty for a safetensors file of another origin.

    Raises:
        WeightsError: for a file that is missing, truncated or not a safetensors file.
    """
    return _read(path, tensors=False)[0]


def _read(path: str | os.PathLike[str], tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{os.fspath(path)}: no such file") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{os.fspath(path)}: not a readable safetensors file: {one_line(error)}; "
            "it may be truncated, and pickled weights (.pth, .pt) are not read"
        ) from error
    if not isinstance(metadata, dict):
        raise WeightsError(
            f"{os.fspath(path)}: header key {HEADER_KEY!r} is {type(metadata).__name__}, expected a dict"
        )
    return metadata, state


def load_into(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a weights file into ``model``, all of it or nothing; the model keeps its dtypes and devices.

    Raises:
        WeightsError: for an unreadable file, tensors that are missing, unexpected, of another shape or not finite (the
            first of them are named), or a model on the meta device.
    """
    name = getattr(model, "name", "") or type(model).__name__
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise WeightsError(
            f"{name}: is on the meta device, which holds no values", "weights=None builds it without a file"
        )
    metadata, state = _read(path, tensors=True)
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        _named("missing", [name for name in own if name not in state]),
        _named("unexpected", [name for name in state if name not in own]),
        _named("another shape", shapes),
        _named("non-finite values", [name for name, tensor in state.items() if not _is_finite(tensor)]),
    ]
    if any(problems):
        origin = metadata.get("model", name)
        says = f", its header says that it is for {origin!r}" if origin != name else ""
        what = "; ".join(filter(None, problems))
        raise WeightsError(f"{os.fspath(path)}: does not fit {name}{says}: {what}; nothing was loaded")
    model.load_state_dict(state, strict=True)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, also as float32."""
    return bool((tensor.float() if tensor.is_floating_point() else tensor).isfinite().all())


def _named(what: str, names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what}: {', '.join(names[:limit])}{more}" if names else ""


def save_weights(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    metadata: dict[str, Any],
    *,
    half: bool = True,
) -> None:
    """Write a weights file atomically. Equal tensors and metadata give equal bytes.

    Args:
        path: of the .safetensors file; its folder is created.
        state_dict: tensors by name. Floating-point tensors of two and more dimensions are stored as float16, others as
            float32, since a running variance overflows float16; integers as they are.
        metadata: JSON-serializable, for the header; see :func:`read_metadata`.
        half: if False, store all floating-point tensors as float32.

    Raises:
        WeightsError: for tensors that are not finite, also after the cast (they are named), metadata that is not
            JSON-serializable, or a file that cannot be written.
    """
    state: dict[str, Tensor] = {}
    bad: list[str] = []
    for name, tensor in state_dict.items():
        dtype = torch.float16 if half and tensor.ndim >= 2 else torch.float32
        # A copy of each: safetensors refuses tensors that share memory.
        stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        state[name] = stored.contiguous()
        if not tensor.isfinite().all():
            bad.append(name)
        elif not stored.isfinite().all():
            bad.append(f"{name} ({tensor.abs().max().item():.4g} overflows float16)")
    if bad:
        raise WeightsError(f"{path}: not saved, {_named('non-finite values', bad)}")
    try:
        header = {HEADER_KEY: json.dumps(metadata, sort_keys=True, allow_nan=False)}
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state, header))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the card is not JSON: {one_line(error)}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot write weights: {one_line(error)}") from error
