"""Trained weights: the table of what exists, where a file is found, and safetensors in and out.

A weights file is ``{model}_{tag}-{first 8 digits of its sha256}.safetensors``. Its header carries one JSON
object, the card: model, tag, arguments, working size, data, recipe, metrics, terms. The card in the table
(``manifest.json``) and beside the file has ``file``, ``sha256`` and ``bytes`` as well.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch.hub

from depthzoo.download import WeightsError, atomic, download, mismatch, reason, sha256_of
from depthzoo.registry import closest
from depthzoo.weights_file import file_name, load_into, load_state, read_metadata, save, write_weights

__all__ = [
    "RELEASE_URL",
    "WeightsError",
    "card",
    "find",
    "load_into",
    "load_state",
    "model_of",
    "models_with_weights",
    "publish",
    "read_metadata",
    "save",
    "tags",
    "write_weights",
]

RELEASE_URL = "https://github.com/org/depthzoo/releases/download/weights"
MANIFEST = Path(__file__).with_name("manifest.json")
BUNDLED = Path(__file__).resolve().parent.parent / "weights"


def _table(manifest: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{manifest}: cannot read the table of weights: {reason(error)}") from error
    return table


def models_with_weights() -> list[str]:
    """Names of the models that have trained weights, in alphabetical order."""
    return sorted(_table(MANIFEST))


def tags(model: str) -> tuple[str, ...]:
    """The tags of a model's weights, the default first; empty for a model without any."""
    entry = _table(MANIFEST).get(model)
    return tuple(sorted(entry["tags"], key=lambda tag: (tag != entry["default"], tag))) if entry else ()


def card(model: str, tag: str = "DEFAULT") -> dict[str, Any]:
    """The card of a model's weights: the metadata in the file's header, and ``file``, ``sha256``, ``bytes``.

    Raises:
        WeightsError: for a model without weights or an unknown tag, with the closest names.
    """
    table = _table(MANIFEST)
    if model not in table:
        others = ", ".join(sorted(table)) or "none yet"
        raise WeightsError(
            f"{model}: no trained weights, asked for {tag!r}; weights=None builds it untrained; "
            f"models with trained weights: {others}"
        )
    known = table[model]["tags"]
    chosen = table[model]["default"] if tag == "DEFAULT" else tag
    if chosen not in known:
        raise WeightsError(f"{model}: unknown weights {tag!r}: {closest(tag, ['DEFAULT', *known])}")
    chosen_card: dict[str, Any] = known[chosen]
    return chosen_card


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
        return _find_known(model, card(model, str(weights)), progress)
    path = Path(weights).expanduser()
    if path.is_dir():
        path /= "model.safetensors"
        if not os.path.isfile(path):
            raise WeightsError(
                f"{path.parent}: is a folder without model.safetensors; expected a run of train"
            )
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: weights file does not exist; expected a .safetensors file")
    for entry in _table(MANIFEST).values():
        for known in entry["tags"].values():
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
        here = [m for m in table if os.path.isfile(BUNDLED / table[m]["tags"][table[m]["default"]]["file"])]
        raise WeightsError(
            f"{error}; weights=None builds {model} untrained; "
            f"models with trained weights at hand: {', '.join(sorted(here)) or 'none'}"
        ) from error


def _verify(path: Path, known: dict[str, Any], advice: str) -> Path:
    try:
        wrong = mismatch(sha256_of(path), path.stat().st_size, known)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read weights: {reason(error)}") from error
    if wrong:
        raise WeightsError(f"{path}: {wrong}; {advice}")
    return path


def publish(path: Path, card: dict[str, Any], folder: Path, manifest: Path, default: bool = False) -> Path:
    """Enters a weights file into the zoo: the file and its card into ``folder``, the card into the table.

    Args:
        path: a file written by :func:`save`; copied under its proper name if it is not in ``folder`` yet.
        card: JSON-able; the header's metadata and what else is known; ``file``, ``sha256`` and ``bytes`` are
            filled in.
        folder: the checkout's ``weights/``.
        manifest: the table, ``depthzoo/manifest.json``; made where it is missing.
        default: whether ``weights="DEFAULT"`` means this tag; a model's first tag always is.

    Returns:
        The card's path, the weights file's with ``.json``.

    Raises:
        WeightsError: for a card of another file (digest, size, name, model or tag), or a failed write.
    """
    header = read_metadata(path)
    try:
        model, tag = str(card["model"]), str(card["tag"])
    except KeyError as error:
        raise WeightsError(f"{path}: the card has no {error}; not published") from error
    try:
        sha256, size = sha256_of(path), path.stat().st_size
        name = file_name(model, tag, sha256)
        about = {"file": name, "sha256": sha256, "bytes": size}
        for key, value in (about | {key: header.get(key) for key in ("model", "tag")}).items():
            if card.get(key, value) != value:
                raise WeightsError(
                    f"{path}: the card says {key} {card[key]!r}, the file {value!r}; not published"
                )
        table = _table(manifest) if manifest.exists() else {}
        entry = table.setdefault(model, {"default": tag, "tags": {}})
        entry["tags"][tag] = card | about
        if default:
            entry["default"] = tag
        card_text, table_text = _json(card | about), _json(table)
        target = folder / name
        if not (target.is_file() and target.samefile(path)):
            with atomic(target) as copy, open(path, "rb") as source:
                shutil.copyfileobj(source, copy)
        # The table last: what it names is there.
        for place, text in ((target.with_suffix(".json"), card_text), (manifest, table_text)):
            with atomic(place) as file:
                file.write(text)
    except OSError as error:
        raise WeightsError(f"{path}: cannot publish into {folder}: {reason(error)}") from error
    return target.with_suffix(".json")


def _json(content: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the card is no JSON: {reason(error)}") from error
