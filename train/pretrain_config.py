"""The configuration of a pre-training, and the schedule and the optimiser that follow from it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from train.pretext import Pretext, SimSiam


class PretrainError(ValueError):
    """A pre-training that cannot start or go on; one line."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pre-training.

    Attributes:
        model: a name of the registry.
        method: "class" (kind of the picture by its folder) or "simsiam" (self-supervised, needs no kinds).
        size: side of the square pictures, pixels.
        epochs: passes over the pictures.
        batch_size: pictures per step.
        lr: peak learning rate; 0 is the method's own: 1e-3 (AdamW), or 0.05 * batch_size / 256 (SGD).
        weight_decay: -1 is the method's own: 0.05 or 1e-4.
        warmup: share of the steps in which the learning rate rises.
        smoothing: of the labels of "class".
        precision: "bf16" (autocast) or "fp32".
        seed: of the initialisation, the order and the augmentation.
        checkpoint_every: steps between checkpoints, besides one after each epoch.
    """

    model: str
    method: str = "class"
    size: int = 128
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.0
    weight_decay: float = -1.0
    warmup: float = 0.05
    smoothing: float = 0.1
    precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        lowest = {"size": 32, "batch_size": 2, "epochs": 1, "checkpoint_every": 1, "lr": 0, "seed": 0}
        for key, low in lowest.items():
            if not low <= getattr(self, key) < math.inf:
                raise PretrainError(
                    f"--{key.replace('_', '-')} {getattr(self, key)}: expected at least {low}"
                )

    def resolved(self) -> "PretrainConfig":
        """With the method's own values in place of those left open."""
        own = (1e-3, 0.05) if self.method == "class" else (0.05 * self.batch_size / 256, 1e-4)
        decay = self.weight_decay if self.weight_decay >= 0 else own[1]
        return dataclasses.replace(self, lr=self.lr or own[0], weight_decay=decay)

    def to_toml(self) -> str:
        """All values as TOML."""
        # JSON's strings and numbers are TOML's too.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in dataclasses.asdict(self).items())


def learning_rate(config: PretrainConfig, step: int, total: int) -> float:
    """Rises linearly in the warm-up, falls to 0 by a half cosine."""
    rise = round(config.warmup * total)
    if step < rise:
        return config.lr * (step + 1) / rise
    return config.lr * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def make_optimizer(pretext: Pretext, config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW for :class:`Classify`, with no decay on vectors; for :class:`SimSiam` its paper's SGD.

    A group's "fixed" says that its learning rate stays: the predictor's, as in the paper.
    """
    parameters = list(pretext.parameters())
    if isinstance(pretext, SimSiam):
        own = {id(p) for p in pretext.predictor.parameters()}
        groups = [
            {"params": [p for p in parameters if (id(p) in own) == fixed], "fixed": fixed}
            for fixed in (False, True)
        ]
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    decays: list[dict[str, Any]] = [
        {
            "params": [p for p in parameters if (p.ndim > 1) == decayed],
            "fixed": False,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(decays, lr=config.lr)
