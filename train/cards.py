"""Between a run and the zoo: finding weights to evaluate, and storing them with what was measured."""

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

import depthzoo
from depthzoo import weights as zoo_weights
from depthzoo.errors import WeightsError, one_line
from depthzoo.files import atomic_write, sha256_of, write_json
from depthzoo.metrics import EIGEN_CROP
from depthzoo.models import DepthModel, create_model, get_builder
from depthzoo.predictor import Predictor
from train.config import TrainConfig, to_toml
from train.failures import limits
from train.shards import ShardDataset

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(depthzoo.__file__).parent / "examples" / "desk.jpg"
# How far an evaluation may be from the figures that are stored of the same weights: another machine's rounding.
SAME = 2e-3


def find_any(name: str, weights: str = "DEFAULT") -> Path:
    """The file that a name of the zoo, a run's folder or a path to a safetensors file stands for.

    Raises:
        ValueError: for something else.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"{path.parent} is a folder without model.safetensors; expected a run of train")
    elif path.suffix != ".safetensors":
        get_builder(name)
        path = zoo_weights.find(name, weights)
    return path


def load_any(name: str, weights: str = "DEFAULT") -> DepthModel:
    """A model by the zoo's name, from a run's folder, or from a safetensors file.

    Raises:
        ValueError: for something else, or a file that does not say which model it is for.
    """
    path = find_any(name, weights)
    card = zoo_weights.read_metadata(path)
    if "model" not in card:
        raise ValueError(f"{path} does not say which model it is for; expected weights of depthzoo")
    return create_model(card["model"], weights=path)


def versions() -> dict[str, str]:
    """Of what a figure depends on."""
    return {"depthzoo": depthzoo.__version__, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """The checkout's commit, with "+" behind it where files have changed since; "unknown" outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def measured(dataset: ShardDataset) -> dict[str, Any]:
    """A card's "camera" and "depth_range" of a data set, by its whole frames: train frames may be cropped."""
    width = (dataset.info["splits"][dataset.split].get("size") or dataset[0][1].shape)[1]
    name = dataset.info.get("camera", "not stated")
    return {
        "camera": {"name": name, "focal_px": dataset.focal_px, "at_width": width},
        "depth_range": list(dataset.depth_range),
    }


def start_card(
    model: DepthModel,
    config: TrainConfig,
    data: dict[str, Any],
    origin: dict[str, Any],
    trained_on: dict[str, Any],
    code: str,
) -> dict[str, Any]:
    """The card of weights before they are evaluated.

    Args:
        model: that was trained.
        config: of the run.
        data: "dataset", "mixed_with", "terms", "camera" and "depth_range", from ``Feed.describe``.
        origin: the card of the weights that the run started from, or empty.
        trained_on: device, steps, images, precision.
        code: commit of the code that trained it, from :func:`commit` when the run began.
    """
    # A path says nothing elsewhere; what an initial file says of itself does.
    names: dict[str, Any] = {key: Path(getattr(config, key)).name for key in ("init", "encoder_weights")}
    names["teacher"] = dataclasses.replace(config.teacher, model=Path(config.teacher.model).name)
    kept = ("dataset", "recipe", "trained_on", "initialised_from", "mixed_with")
    start = {key: origin[key] for key in kept if origin.get(key)}
    return {
        "model": model.name,
        "tag": config.tag,
        "arguments": model.arguments,
        "size": list(config.size),
        "recipe": to_toml(dataclasses.replace(config, **names)),
        "initialised_from": start or None,
        "unit": "m",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": trained_on,
        "commit": code,
        "versions": versions(),
        **data,
        # What the initial weights were trained on binds these too.
        "terms": joined_terms(origin.get("terms", ""), data["terms"]),
    }


def joined_terms(*terms: str) -> str:
    """All clauses of some terms, each once."""
    return "; ".join(dict.fromkeys(clause for each in terms for clause in each.split("; ") if clause))


def make_card(model: DepthModel, report: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """The card of evaluated weights: what their own header says, and the figures.

    Args:
        model: with its ``card``.
        report: "count", "truth", "protocol", "depth_range", "plain", "flip", "sizes" and "failures", as
            ``train.evaluate`` makes it.
        dataset: ``dataset.json`` of the test set.
    """
    if model.card is None:
        raise ValueError("weights=None cannot have a card")
    top, bottom, left, right = EIGEN_CROP
    source, (height, width) = str(dataset.get("source")), dataset["splits"]["test"]["size"]
    frames = (
        "official test frames of NYU Depth V2" if source.startswith("nyu") else f"test frames of {source}"
    )
    area = f"crop [{top}:{bottom}, {left}:{right}]" if report["protocol"] == "eigen" else "whole frames"
    near, far = report["depth_range"]
    protocol = (
        f"{report['count']} {frames}, {report['truth']} truth at {height}x{width}, {area}, "
        f"{near:g} < d < {far:g} m, no median scaling"
    )
    metrics = {"protocol": protocol, **report["plain"], "flip": report["flip"]}
    terms = model.card.get("terms") or dataset.get("terms", "")
    card = {
        **model.card,
        "metrics": metrics,
        "sizes": report["sizes"],
        "failures": report["failures"],
        "terms": terms,
        # Of the training, where the header has it.
        "commit": model.card.get("commit") or commit(),
        "evaluation_commit": commit(),
    }
    return {**card, "limits": limits(card)}


def store_weights(model: DepthModel, card: dict[str, Any], folder: Path, tag: str) -> Path:
    """Writes weights, card and :func:`store_output` into ``folder``, the card into the manifest if it is the zoo's own.

    Returns:
        The weights' path.
    """
    card = {**card, "tag": tag}
    path = save(model, folder, tag, card)
    publish(path, card, folder, manifest_of(folder), default=True)
    store_output(path)
    return path


def manifest_of(folder: Path) -> Path:
    """The table of the weights in a folder: the zoo's own for the checkout's."""
    return (
        zoo_weights.MANIFEST
        if folder.resolve() == zoo_weights.BUNDLED.resolve()
        else folder / "manifest.json"
    )


def is_stored(path: Path, folder: Path, tag: str) -> bool:
    """Whether :func:`store_weights` has put this file into ``folder`` under ``tag``, and not a run that it is of."""
    header = zoo_weights.read_metadata(path)
    return path.resolve().parent == folder.resolve() and header.get("tag") == tag and "metrics" in header


def renew_card(path: Path, card: dict[str, Any]) -> Path:
    """Writes the card beside a weights file again, with what its own header does not say yet; the file stays as it is.

    Args:
        path: of the weights, in the folder of their card.
        card: of an evaluation of these weights, by :func:`make_card`.

    Returns:
        ``path``.

    Raises:
        ValueError: the figures are further than ``SAME`` from those in the header.
    """
    header = zoo_weights.read_metadata(path)
    known, found = header["metrics"]["per_image"], card["metrics"]["per_image"]
    for key in ("abs_rel", "rmse", "d1"):
        if abs(known[key] - found[key]) > SAME:
            raise ValueError(
                f"{path}: {key} is {found[key]:.4f} here, but {known[key]:.4f} in its header; the card stays"
            )
    publish(path, card | header, path.parent, manifest_of(path.parent))
    return path


def store_output(path: Path) -> Path:
    """Writes what a weights file makes of the bundled picture beside it, for a test to compute again.

    Returns:
        The path of a PNG of millimetres, NAME.desk.depth.png.
    """
    out = path.with_suffix(f".{PICTURE.stem}.depth.png")
    Predictor(load_any(str(path)), device="cpu").predict(PICTURE).save_depth16(out)
    return out


FILE_KEYS = ("file", "sha256", "bytes")  # of a card, about the file that its header cannot know
# No dot: torch.hub reads the digits between a hyphen and a dot, and a dot tells a path from a tag.
TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


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


def write_weights(model: nn.Module, path: Path, card: dict[str, Any]) -> None:
    """Write a model's weights to an explicit path; see :func:`save`."""
    name = getattr(model, "name", "") or str(card.get("model", ""))
    if not name or card.get("model", name) != name:
        raise WeightsError(
            f"cannot save weights of model {name!r} with a card of model {card.get('model')!r}"
        )
    header = {key: value for key, value in card.items() if key not in FILE_KEYS} | {"model": name}
    if hasattr(model, "arguments"):
        # Without them a reload would build another range of depth around the same tensors.
        header["arguments"] = model.arguments
    zoo_weights.save_weights(path, model.state_dict(), header)


def save(model: nn.Module, folder: str | os.PathLike[str], tag: str, card: dict[str, Any]) -> Path:
    """Write ``{model}_{tag}-{sha8}.safetensors`` into ``folder``; equal tensors and card give equal bytes.

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
    name = getattr(model, "name", "") or str(card.get("model", ""))
    unnamed = Path(folder) / file_name(name, tag, "0" * 8)
    write_weights(model, unnamed, {**card, "tag": tag})
    return unnamed.rename(Path(folder) / file_name(name, tag, sha256_of(unnamed)))


def manifest_entry(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a card that ``manifest.json`` holds."""
    entry = {key: card[key] for key in (*FILE_KEYS, "parameters", "size") if key in card}
    means = card.get("metrics", {}).get("per_image", {})
    return entry | {
        "metrics": {"per_image": {key: means[key] for key in ("abs_rel", "rmse", "d1") if key in means}}
    }


def publish(path: Path, card: dict[str, Any], folder: Path, manifest: Path, default: bool = False) -> Path:
    """Enters a weights file into the zoo: the file and its card into ``folder``, the card into the table.

    Args:
        path: a file written by :func:`save`; copied under its proper name if it is not in ``folder`` yet.
        card: JSON-able; the header's metadata and what else is known; ``file``, ``sha256`` and ``bytes`` are
            filled in.
        folder: the checkout's ``weights/``.
        manifest: the table, ``depthzoo/manifest.json``; made where it is missing. It gets what a download and
            `depthzoo list` need.
        default: whether ``weights="DEFAULT"`` means this tag; a model's first tag always is.

    Returns:
        The card's path, the weights file's with ``.json``.

    Raises:
        WeightsError: for a card of another file (digest, size, name, model or tag), or a failed write.
    """
    header = zoo_weights.read_metadata(path)
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
        table = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        entry = {tag: manifest_entry(card | about)}
        table[model] = (
            entry | {**table.get(model, {}), **entry} if default else {**table.get(model, {}), **entry}
        )
        target = folder / name
        if not (target.is_file() and target.samefile(path)):
            with atomic_write(target) as copy:
                shutil.copyfile(path, copy)
        # The table last: what it names is there.
        write_json(target.with_suffix(".json"), card | about)
        with atomic_write(manifest) as copy:  # not sorted: the first tag is the default
            copy.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the card is no JSON: {one_line(error)}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot publish into {folder}: {one_line(error)}") from error
    return target.with_suffix(".json")
