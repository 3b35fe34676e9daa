"""Weights files and their cards: finding weights to evaluate, and storing them with what was measured."""

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import depthzoo
from depthzoo import weights as zoo_weights
from depthzoo.errors import WeightsError
from depthzoo.files import atomic_write, sha256_of, write_json
from depthzoo.metrics import EIGEN_CROP, METRICS
from depthzoo.models import DepthModel, get_builder
from depthzoo.prediction import Predictor
from depthzoo.weights import find, read_metadata, save_weights
from train.config import TrainConfig, to_toml
from train.evaluation import ErrorByDistance, ranked

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(depthzoo.__file__).parent / "examples" / "desk.jpg"
# Keys of a card that the header of its weights file cannot hold.
FILE_KEYS = ("file", "sha256", "bytes")
# Without a dot, which tells a path from a tag, and so that torch.hub finds the digits of the digest.
TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Largest difference between an evaluation and the stored metrics of the same weights, due to rounding.
TOLERANCE = 2e-3
WORST, WORST_METRICS = 5, ("abs_rel", "rmse", "d1", "silog")
# Sources whose frames are all of rooms.
INDOORS = ("nyu", "rooms")


def find_any(name: str, weights: str = "DEFAULT") -> Path:
    """Return the weights file of a model of the zoo (by name and tag), of a run's folder, or at a path.

    Raises:
        ValueError: no such model, file or run.
    """
    if Path(name).is_dir() or Path(name).suffix == ".safetensors":
        return find("", Path(name))
    get_builder(name)
    return find(name, weights)


def load_any(name: str, weights: str = "DEFAULT") -> DepthModel:
    """Load a model of the zoo, of a run's folder, or from a path; see :func:`find_any`."""
    return depthzoo.load(find_any(name, weights))


def write_weights(model: DepthModel, path: Path, card: dict[str, Any]) -> None:
    """Write a model's weights with a card in the header; see ``depthzoo.weights.save_weights``."""
    kept = {key: value for key, value in card.items() if key not in FILE_KEYS}
    save_weights(path, model.state_dict(), {**kept, "model": model.name, "arguments": model.arguments})


def versions() -> dict[str, str]:
    """Return the versions on which a measurement depends."""
    return {"depthzoo": depthzoo.__version__, "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """Return the checkout's commit, followed by "+" if files have changed since; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def start_card(
    model: DepthModel,
    config: TrainConfig,
    data: dict[str, Any],
    origin: dict[str, Any],
    trained_on: dict[str, Any],
    code: str,
) -> dict[str, Any]:
    """Return the card of weights that have not been evaluated yet.

    ``data`` is from ``TrainData.describe``, ``origin`` the card of the weights that the run started from, or empty.
    """
    # The name of a file only: its path means nothing elsewhere.
    names: dict[str, Any] = {key: Path(getattr(config, key)).name for key in ("init", "encoder_weights")}
    kept = ("dataset", "recipe", "trained_on", "initialised_from", "mixed_with")
    return {
        "model": model.name,
        "tag": config.tag,
        "arguments": model.arguments,
        "size": list(config.size),
        "recipe": to_toml(dataclasses.replace(config, **names)),
        "initialised_from": {key: origin[key] for key in kept if origin.get(key)} or None,
        "unit": "m",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": trained_on,
        "commit": code,
        "versions": versions(),
        **data,
        # The terms of the data that the initial weights were trained on apply too.
        "terms": join_terms(origin.get("terms", ""), data["terms"]),
    }


def join_terms(*terms: str) -> str:
    """Return all clauses of some terms, each once."""
    return "; ".join(dict.fromkeys(clause for each in terms for clause in each.split("; ") if clause))


def make_card(model: DepthModel, report: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """Return the card of evaluated weights: that of the model, and the report of ``train.evaluate``.

    ``dataset`` is the content of the test set's ``dataset.json``.
    """
    if model.card is None:
        raise ValueError("a model without weights has no card")
    top, bottom, left, right = EIGEN_CROP
    source, (height, width) = str(dataset.get("source")), dataset["splits"]["test"]["size"]
    official = source.startswith("nyu")
    frames = "official test frames of NYU Depth V2" if official else f"test frames of {source}"
    area = f"crop [{top}:{bottom}, {left}:{right}]" if report["protocol"] == "eigen" else "whole frames"
    near, far = report["depth_range"]
    protocol = (
        f"{report['count']} {frames}, {report['truth']} truth at {height}x{width}, {area}, "
        f"{near:g} < d < {far:g} m, no median scaling"
    )
    card = {
        **model.card,
        "metrics": {"protocol": protocol, **report["plain"], "flip": report["flip"]},
        "sizes": report["sizes"],
        "failures": report["failures"],
        "terms": model.card.get("terms") or dataset.get("terms", ""),
        # Of the training, if the file has it.
        "commit": model.card.get("commit") or commit(),
        "evaluation_commit": commit(),
    }
    return {**card, "limits": limits(card)}


def failures(rows: Tensor, keys: Sequence[str], by_distance: ErrorByDistance) -> dict[str, Any]:
    """Return a card's "failures": errors by distance, the spread over frames, and the worst frames.

    Where SILog is far below 100 AbsRel, the order of near and far is right and the scale is wrong.
    """
    order = ranked(rows)
    errors = rows[order, METRICS.index("abs_rel")]
    percentiles = torch.quantile(errors, torch.tensor([0.1, 0.5, 0.9], dtype=errors.dtype)).tolist()
    names = ("best_tenth", "median", "worst_tenth")
    worst = [
        {"frame": keys[index]}
        | {key: round(float(rows[index, METRICS.index(key)]), 4) for key in WORST_METRICS}
        for index in order[::-1][:WORST]
    ]
    spread = {name: round(value, 4) for name, value in zip(names, percentiles, strict=True)}
    return {"by_distance": by_distance.compute(), "abs_rel": spread, "worst": worst}


def limits(card: dict[str, Any]) -> list[str]:
    """Return what the weights of a card are not for."""
    camera, (near, far), unit = card["camera"], card["depth_range"], card["unit"]
    return [
        *(["Rooms: nothing was learnt or measured outdoors."] if _only_rooms(card) else []),
        f"One camera, {camera['name']}: {camera['focal_px']:g} pixels of focal length at {camera['at_width']} wide. "
        "For another give its focal length, or multiply depth by f / (0.8107 * width), f its focal length in pixels.",
        f"Nothing was learnt nearer than {near:g} {unit} or beyond {far:g} {unit}.",
        f"Terms of the training data: {card['terms']}",
    ]


def _only_rooms(card: dict[str, Any]) -> bool:
    """Whether all data sets of the weights, and of those they started from, are known to be of rooms."""
    seen, before = [card.get("dataset") or {}, *(card.get("mixed_with") or ())], card.get("initialised_from")
    rooms = all(str(data.get("source")).startswith(INDOORS) for data in seen)
    return rooms and (not before or _only_rooms(before))


def save(model: DepthModel, folder: Path, tag: str, card: dict[str, Any]) -> Path:
    """Write ``{model}_{tag}-{sha8}.safetensors`` into a folder; equal tensors and card give equal bytes.

    Raises:
        WeightsError: a tag that is not made of lower-case letters and digits joined by hyphens, or a failed write.
    """
    if not TAG.fullmatch(tag):
        raise WeightsError(f"weights tag {tag!r}: expected lower-case letters and digits, joined by hyphens")
    unnamed = folder / f"{model.name}_{tag}.safetensors"
    write_weights(model, unnamed, {**card, "tag": tag})
    return unnamed.rename(folder / f"{model.name}_{tag}-{sha256_of(unnamed)[:8]}.safetensors")


def publish(path: Path, card: dict[str, Any], manifest: Path | None = None, default: bool = False) -> Path:
    """Write the card of a weights file beside it, and enter the file into a manifest.

    Args:
        path: of the weights.
        card: of them; "file", "sha256" and "bytes" are added.
        manifest: the table of a zoo; if None, that of the library for a file in the checkout's ``weights/``.
        default: whether ``weights="DEFAULT"`` selects the file.

    Returns:
        The path of the card.
    """
    known: dict[str, Any] = {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
    write_json(path.with_suffix(".json"), card | known)
    if manifest is None and path.resolve().parent == zoo_weights.BUNDLED.resolve():
        manifest = zoo_weights.MANIFEST
    if manifest is not None:
        table = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        means = card.get("metrics", {}).get("per_image", {})
        metrics = {key: means[key] for key in ("abs_rel", "rmse", "d1") if key in means}
        known |= {key: card[key] for key in ("parameters", "size") if key in card}
        entry = {card["tag"]: known | {"metrics": {"per_image": metrics}}}
        tags = table.get(card["model"], {})
        # The first tag is the default.
        table[card["model"]] = entry | {**tags, **entry} if default else {**tags, **entry}
        text = json.dumps(dict(sorted(table.items())), indent=2, allow_nan=False) + "\n"
        with atomic_write(manifest) as part:
            part.write_text(text, encoding="utf-8")
    return path.with_suffix(".json")


def store_weights(model: DepthModel, card: dict[str, Any], folder: Path, tag: str) -> Path:
    """Write weights, card and :func:`store_output` into a folder; return the path of the weights."""
    path = save(model, folder, tag, card)
    publish(path, {**card, "tag": tag}, default=True)
    store_output(path)
    return path


def is_stored(path: Path, folder: Path, tag: str) -> bool:
    """Whether :func:`store_weights` put this file into ``folder`` under ``tag``."""
    header = read_metadata(path)
    return path.resolve().parent == folder.resolve() and header.get("tag") == tag and "metrics" in header


def renew_card(path: Path, card: dict[str, Any]) -> Path:
    """Write the card beside a weights file again; keys of the file's header keep their values. Return ``path``.

    Raises:
        ValueError: the metrics differ from those in the header by more than ``TOLERANCE``.
    """
    header = read_metadata(path)
    known, found = header["metrics"]["per_image"], card["metrics"]["per_image"]
    for key in ("abs_rel", "rmse", "d1"):
        if abs(known[key] - found[key]) > TOLERANCE:
            raise ValueError(
                f"{path}: {key} is {found[key]:.4f} here, but {known[key]:.4f} in its header; the card stays"
            )
    publish(path, card | header)
    return path


def store_output(path: Path) -> Path:
    """Write the prediction for the bundled picture beside a weights file, as millimetres, for a test to compare."""
    out = path.with_suffix(f".{PICTURE.stem}.depth.png")
    Predictor(load_any(str(path)), device="cpu")(PICTURE).save_depth16(out)
    return out
