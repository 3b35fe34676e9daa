"""Networks by name: models of the zoo and peers, built one at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure.exported import FILES, exported
from benchmarks.measure.peers import PEERS, build_peer
from depthzoo import weights as zoo_weights
from depthzoo.models import create_model, list_models
from export.facts import working_size


@dataclass(frozen=True)
class Network:
    """One to be timed, at random weights where it has none: speed does not depend on them.

    Attributes:
        name: of the model or peer.
        peer: whether it is from elsewhere.
        weights: "random", or the tag of the zoo's.
        module: in eval mode, on the CPU.
        size: (H, W) of its input.
        file: gives its ONNX file in a precision; None where there is none.
    """

    name: str
    peer: bool
    weights: str
    module: nn.Module
    size: tuple[int, int]
    file: Callable[[str], Path] | None


def networks(
    models: Sequence[str],
    peers: Sequence[str],
    size: tuple[int, int] | None,
    missing: dict[str, str],
    weights: str = "DEFAULT",
    files: Path = FILES,
    data: Path | None = None,
) -> Iterator[Network]:
    """All that were asked for, one after the other.

    Args:
        models: of the zoo.
        peers: from elsewhere.
        size: (H, W) of the input, or as near as they take it; None: native.
        missing: takes the reason why one is not there.
        weights: "DEFAULT" or "none", of the zoo.
        files, data: see :func:`benchmarks.exported.exported`.
    """
    for name in models:
        has = weights == "DEFAULT" and name in list_models(pretrained=True)
        weights_file = zoo_weights.find(name, "DEFAULT") if has else None
        torch.manual_seed(0)
        model = create_model(name, weights=weights_file).eval()

        def file(precision: str, model: Any = model, weights_file: Path | None = weights_file) -> Path:
            return exported(model, precision, files, weights_file, data)

        tag = str((model.card or {}).get("tag", "unnamed")) if has else "random"
        yield Network(name, False, tag, model, size or working_size(model, None), file)
    for name in peers:
        try:
            module = build_peer(name)
        except ModuleNotFoundError as error:
            missing[name] = str(error)
            continue
        yield Network(name, True, "random", module, PEERS[name].at(size), None)
