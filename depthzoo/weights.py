"""Trained weights: which exist, where a file is found, and how it is read and written.

A weights file is ``{model}_{tag}-{first 8 digits of its sha256}.safetensors``. The metadata in its header holds one
JSON object, the card: model, tag, arguments, working size, data, recipe, metrics, terms. ``manifest.json`` lists the
published files: by model, then by tag (the default first), ``file``, ``sha256``, ``bytes``, ``parameters``, ``size``
and the main metrics.
"""

import hashlib
import http.client
import json
import os
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import safetensors
import safetensors.torch
import torch
import torch.hub
from torch import Tensor, nn

from depthzoo.errors import WeightsError, one_line, suggest
from depthzoo.files import atomic_write, sha256_of

CHUNK = 1 << 20
STALL_SECONDS = 30.0
HEADER_KEY = "depthzoo"
RELEASE_URL = "https://github.com/org/depthzoo/releases/download/weights"
MANIFEST = Path(__file__).with_name("manifest.json")
BUNDLED = Path(__file__).resolve().parent.parent / "weights"


def _table(manifest: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{manifest}: cannot read the table of weights: {one_line(error)}") from error
    return table


def tags(model: str) -> tuple[str, ...]:
    """Return the tags of a model's trained weights, the default first; empty for a model without any."""
    return tuple(_table(MANIFEST).get(model, ()))


def card(model: str, tag: str = "DEFAULT") -> dict[str, Any]:
    """Return the card of a model's weights.

    In a checkout all of it, from the JSON file in ``weights/``; elsewhere the entry of ``manifest.json``.

    Raises:
        WeightsError: for a model without weights, or an unknown tag (the closest ones are suggested).
    """
    entry = _entry(model, tag)
    path = (BUNDLED / entry["file"]).with_suffix(".json")
    try:
        return {**json.loads(path.read_text(encoding="utf-8")), **entry} if path.is_file() else entry
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {one_line(error)}") from error


def _entry(model: str, tag: str = "DEFAULT") -> dict[str, Any]:
    """The entry of the manifest, with the model and the tag."""
    table = _table(MANIFEST)
    if model not in table:
        others = ", ".join(sorted(table)) or "none yet"
        raise WeightsError(
            f"{model}: no trained weights, asked for {tag!r}; weights=None builds it untrained; "
            f"models with trained weights: {others}"
        )
    entries = table[model]
    chosen = next(iter(entries)) if tag == "DEFAULT" else tag
    if chosen not in entries:
        raise WeightsError(f"{model}: unknown weights {tag!r}: {suggest(tag, ['DEFAULT', *entries])}")
    return {"model": model, "tag": chosen, **entries[chosen]}


def find(model: str, weights: str | os.PathLike[str], *, progress: bool | None = None) -> Path:
    """The local file of a model's weights, verified, downloaded where necessary.

    Looked for in the checkout's ``weights/``, then in ``torch.hub.get_dir()/checkpoints``, then fetched from
    ``RELEASE_URL`` (or from the base in ``DEPTHZOO_WEIGHTS_URL``) into the latter. A path is taken as it is:
    only a file that has the very name of a known one is verified, so renamed and edited ones load.

    Args:
        model: the builder's name.
        weights: "DEFAULT", a tag, or a path of a file or of a run's folder, whose ``model.safetensors`` is meant; a
            string is a path if it has a dot or a slash, or exists.
        progress: a bar on stderr during a download; None is only where stderr is a terminal.

    Raises:
        WeightsError: nothing found, a digest that differs (both named), or a failed download.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise WeightsError(f"{model}: weights must be 'DEFAULT', a tag, a path or None, not {weights!r}")
    if not is_path(model, weights):
        return _find_known(model, _entry(model, str(weights)), progress)
    path = Path(weights).expanduser()
    if path.is_dir():
        path /= "model.safetensors"
        if not os.path.isfile(path):
            raise WeightsError(
                f"{path.parent}: is a folder without model.safetensors; expected a run of train"
            )
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: weights file does not exist; expected a .safetensors file")
    for entries in _table(MANIFEST).values():
        for known in entries.values():
            if known["file"] == path.name:
                _verify(path, known, "rename it to load it unverified")
    return path


def is_path(model: str, weights: Any) -> bool:
    """Whether ``weights`` of a model are meant as a path, rather than as "DEFAULT" or a tag; see :func:`find`."""
    if not isinstance(weights, str):
        return isinstance(weights, os.PathLike)
    known = weights == "DEFAULT" or weights in tags(model)
    return not known and ("." in weights or "/" in weights or os.sep in weights or os.path.exists(weights))


def model_of(path: str | os.PathLike[str]) -> str:
    """The name of the model that a weights file, or a run's folder, is for.

    Raises:
        WeightsError: an unreadable file, or one whose header does not say.
    """
    file = find("", Path(path))
    name = read_metadata(file).get("model")
    if not isinstance(name, str):
        raise WeightsError(f"{file}: does not say which model it is for; name the model too")
    return name


def _find_known(model: str, known: dict[str, Any], progress: bool | None) -> Path:
    bundled = BUNDLED / known["file"]
    if os.path.isfile(bundled):
        return _verify(bundled, known, "restore it, or delete it to download a good one")
    cached = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / known["file"]
    if os.path.isfile(cached):
        return _verify(cached, known, "delete it to download a good one")
    base = os.environ.get("DEPTHZOO_WEIGHTS_URL") or RELEASE_URL
    try:
        return download(f"{base.rstrip('/')}/{quote(known['file'])}", cached, known, progress)
    except WeightsError as error:
        table = _table(MANIFEST)
        here = [m for m in table if os.path.isfile(BUNDLED / next(iter(table[m].values()))["file"])]
        raise WeightsError(
            f"{error}; weights=None builds {model} untrained; "
            f"models with trained weights at hand: {', '.join(sorted(here)) or 'none'}"
        ) from error


def _verify(path: Path, known: dict[str, Any], advice: str) -> Path:
    try:
        wrong = mismatch(sha256_of(path), path.stat().st_size, known)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read weights: {one_line(error)}") from error
    if wrong:
        raise WeightsError(f"{path}: {wrong}; {advice}")
    return path


def mismatch(sha256: str, size: int, card: dict[str, Any]) -> str | None:
    """What differs between a file and its card, both digests named, or None where they agree."""
    if sha256 == card["sha256"] and size == card["bytes"]:
        return None
    return f"sha256 {sha256} ({size} bytes), expected {card['sha256']} ({card['bytes']} bytes)"


def download(url: str, path: Path, card: dict[str, Any], progress: bool | None = None) -> Path:
    """Fetches ``url`` into ``path``; its size and sha256 are checked before the file gets that name.

    Args:
        url: any that urllib opens, so ``file://`` mirrors too.
        path: where the file goes; its folder is made.
        card: has the ``sha256`` and the ``bytes`` that are expected.
        progress: a bar on stderr; None is only where stderr is a terminal.

    Raises:
        WeightsError: for any failure; names the URL and the path. Nothing half-written stays.
    """
    advice = f"; put the file by hand at {path}, or set DEPTHZOO_WEIGHTS_URL to a mirror"
    show = sys.stderr.isatty() if progress is None else progress
    digest, size = hashlib.sha256(), 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "depthzoo"})
        response = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WeightsError(f"cannot download {url}: {one_line(error)}{advice}") from error
    # torch.hub's tqdm is the real one where it is installed, else a plain percentage.
    hub: Any = torch.hub
    bar = hub.tqdm(total=card["bytes"], disable=not show, unit="B", unit_scale=True, desc=path.name)
    try:
        with response, bar, atomic_write(path) as temporary, open(temporary, "wb") as file:
            # A server that sends more than was announced does not get to fill the disk.
            while size <= card["bytes"] and (chunk := _read_chunk(response, url, advice)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
            wrong = mismatch(digest.hexdigest(), size, card)
            if wrong:
                raise WeightsError(f"downloaded {url}: {wrong}; nothing was kept{advice}")
    except OSError as error:
        raise WeightsError(
            f"cannot write {path} from {url}: {one_line(error)}; set TORCH_HOME to a writable folder"
        ) from error
    return path


def _read_chunk(response: IO[bytes], url: str, advice: str) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"download of {url} broke off: {one_line(error)}; nothing was kept{advice}"
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card in a weights file's header; empty for a safetensors file of another origin.

    Raises:
        WeightsError: for a file that is missing, truncated or no safetensors file.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str], tensors: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            card = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{os.fspath(path)}: no such file") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{os.fspath(path)}: not a readable safetensors file: {one_line(error)}; "
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


def save_weights(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    metadata: dict[str, Any],
    *,
    half: bool = True,
) -> None:
    """Write a weights file, atomically; equal tensors and metadata give equal bytes.

    Args:
        path: of the .safetensors file; its folder is created.
        state_dict: tensors by name. Floating-point tensors of two and more dimensions are stored as float16, the
            others as float32 (a running variance overflows float16); integers as they are.
        metadata: JSON-serializable, for the header; see :func:`read_metadata`.
        half: if False, store all floating-point tensors as float32.

    Raises:
        WeightsError: for tensors that are not finite (also after the cast; they are named), metadata that is not
            JSON-serializable, or a file that cannot be written.
    """
    try:
        header = {HEADER_KEY: json.dumps(metadata, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the metadata is not JSON: {one_line(error)}") from error
    state: dict[str, Tensor] = {}
    bad: list[str] = []
    for key, value in state_dict.items():
        dtype = torch.float16 if half and value.ndim >= 2 else torch.float32
        dtype = dtype if value.is_floating_point() else value.dtype
        # A copy of each: safetensors refuses tensors that share memory.
        state[key] = (
            value.detach()
            .to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True)
            .contiguous()
        )
        if not value.isfinite().all():
            bad.append(key)
        elif not state[key].isfinite().all():
            bad.append(f"{key} ({value.abs().max().item():.4g} overflows float16)")
    if bad:
        raise WeightsError(f"{path}: not saved, {_some('non-finite values', bad)}")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state, header))
    except OSError as error:
        raise WeightsError(f"{path}: cannot write weights: {one_line(error)}") from error
