"""What a file says of itself: the metadata that ``run_onnx.py --info`` prints."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

import depthzoo
from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.models import DepthModel
from export.graph import MULTIPLE

FORMAT = "depthzoo/1"
AS_EXACT = 1.1  # times the best AbsRel in a card's table of sizes
DEFAULT_SIZE = (480, 640)
# A CPU computes float16 files in float32: they are compared with every tensor rounded, but seen on no GPU yet.
VERIFIED = {"fp16": "CPU-checked, each tensor rounded to float16; not verified on CUDA"}


def working_size(model: DepthModel, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) that the network works at: the size that it is fixed to, or its weights' own."""
    height, width = size or (model.card or {}).get("size", DEFAULT_SIZE)
    return int(height), int(width)


def trained_sizes(card: Mapping[str, Any]) -> list[list[int]]:
    """[H, W] of the sizes that weights hold at: their own, and those of the card's table that are about as exact."""
    table = card.get("sizes", {})
    best = min((row["abs_rel"] for row in table.values()), default=0.0)
    sizes = {tuple(card["size"])} if "size" in card else set()
    sizes |= {
        tuple(map(int, text.split("x"))) for text, row in table.items() if row["abs_rel"] <= AS_EXACT * best
    }
    return sorted([int(height), int(width)] for height, width in sizes)


def describe(
    model: DepthModel,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    uint8: bool = False,
    weights_file: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The facts of an export, JSON-able; what is unknown is left out."""
    card = model.card or {}
    digest = hashlib.sha256(Path(weights_file).read_bytes()).hexdigest() if weights_file else None
    image = {"name": "image", "type": "float32", "layout": "NCHW", "colour": "RGB", "range": [0, 1]}
    if uint8:
        image |= {"type": "uint8", "layout": "NHWC", "range": [0, 255]}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": model.name,
        "weights": card.get("tag", "unnamed") if model.card else "random",
        "weights_sha256": digest or card.get("sha256"),
        "precision": precision,
        "verified_on": VERIFIED.get(precision, "cpu"),
        "input": image | {"multiple_of": 1 if uint8 else MULTIPLE},
        "output": {"name": "depth", "type": "float32", "layout": "NCHW"},
        "unit": "m",
        "depth_range": [model.min_depth, model.max_depth],
        "canonical_focal": CANONICAL_FOCAL,  # of the width
        "scale": "metres = depth * focal_px / (canonical_focal * picture width); depth itself if focal_px is unknown",
        "size": list(working_size(model, size)),
        "trained_sizes": trained_sizes(card),
        "arguments": model.arguments,
        "licence": "code MIT; weights: see terms" if model.card else "MIT",
        "versions": {
            "depthzoo": depthzoo.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
    if uint8:
        kept = "squeezed to" if size else "resized, aspect kept, to about the pixels of"
        facts["resizing"] = (
            f"inside: {kept} size, bilinear and antialiased, to bytes, as Pillow; depth back, bilinear"
        )
    facts |= {key: card.get(key) for key in ("dataset", "recipe", "camera", "metrics", "terms", "trained_on")}
    return {key: value for key, value in facts.items() if value not in (None, "", [])}


def write_facts(model: onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    """Makes ``facts`` the metadata of a file: strings, JSON where there is structure.

    The format comes last, and the metadata last in the file: a file that has been cut short does not name it.
    """
    del model.metadata_props[:]
    for key, value in sorted(facts.items(), key=lambda fact: fact[0] == "format"):
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    image = facts["input"]
    dims = "(N, H, W, 3)" if image["layout"] == "NHWC" else "(N, 3, H, W)"
    multiple = f", H and W multiples of {image['multiple_of']}" if image["multiple_of"] > 1 else ""
    low, high = image["range"]
    model.doc_string = (
        f"{facts['name']}: image {image['type']} {dims}, RGB in [{low}, {high}]{multiple}, "
        "to depth float32 (N, 1, H, W) in metres"
    )


def read_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """The metadata of a file, JSON decoded."""
    facts: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            facts[entry.key] = json.loads(entry.value)
        except ValueError:
            facts[entry.key] = entry.value
    return facts
