"""The configuration of a run: one dataclass, filled from a TOML recipe and then from flags."""

import dataclasses
import json
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthzoo.errors import suggest


class RecipeError(ValueError):
    """A recipe that cannot be used: file, key, what was expected."""


@dataclass(frozen=True)
class AugmentConfig:
    """How train samples are varied; see ``train.augment``. All off by default.

    Attributes:
        flip: mirror left and right, with probability 1/2.
        zoom: smallest and largest magnification, drawn evenly in its logarithm; depth is divided by it.
        rotate: largest rotation, degrees, either way.
        brightness, contrast, saturation: largest relative change.
        gamma: largest exponent; its inverse is the smallest.
        channel_swap: probability of a random order of the colour channels.
        grey: probability of a grey picture.
        cutdepth: probability that a patch of the picture shows its depth instead (Ishii and Yamashita, "CutDepth",
            2021).
        blur: probability of a blur of up to 1.5 pixels (standard deviation).
        noise: largest standard deviation of the sensor's noise, colours being 0 to 1; each picture draws its own.
        jpeg: probability of JPEG artefacts, of a quality of 30 to 95.
    """

    flip: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 1.0
    channel_swap: float = 0.0
    grey: float = 0.0
    cutdepth: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0


@dataclass(frozen=True)
class TeacherConfig:
    """A trained model that labels pictures without depth, for a student to learn from beside real frames.

    The idea of Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020: the
    teacher sees a clean picture, the student an augmented one. The pictures are given with ``--pictures``.

    Attributes:
        model: a name of the registry, a run's folder or a weights file; "" is no teacher.
        weights: tag of the weights, where ``model`` is a name.
        share: of each batch that the labelled pictures make up.
        flip: average the teacher's depth with that of the mirrored picture.
        size: (H, W) of the labelled pictures; (0, 0) is the run's own size.
        limit: only so many pictures, evenly spread; 0 is all.
        terms: of the pictures, for the card.
    """

    model: str = ""
    weights: str = "DEFAULT"
    share: float = 0.5
    flip: bool = True
    size: tuple[int, int] = (0, 0)
    limit: int = 0
    terms: str = "not stated"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RecipeError(f"teacher.share = {self.share}: expected 0 < share < 1")
        if self.size != (0, 0) and min(self.size) < 32:
            raise RecipeError(f"teacher.size = {list(self.size)}: expected [height, width], both at least 32")
        if self.limit < 0:
            raise RecipeError(f"teacher.limit = {self.limit}: expected 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run; the recipe's keys and the command's flags have these names.

    Attributes:
        model: a name of the registry.
        head: of the model, "sigmoid" or "linear".
        model_options: other options of the model's builder, as its docstring lists them.
        encoder_weights: "none", "imagenet" or a path to an encoder's safetensors file.
        init: a whole model's safetensors file to start from, or "".
        size: (H, W) of the training pictures; also the working size of the weights. The flag --size also drops
            ``sizes``.
        first_size: (H, W) of the first ``first_share`` of the steps; small pictures first are cheap steps (Howard
            et al., fastai's DAWNBench entry, 2018).
        first_share: share of the steps at ``first_size``; 0 is off.
        sizes: (H, W) of which each later step draws one, so that the weights hold at all of them; empty is ``size``
            alone. Validation is at ``size``.
        balance: 0 draws each train frame once an epoch; up to 1, frames of a rare median depth more often, by the
            inverse of its density to this power.
        steps: optimiser steps; 0 means that ``epochs`` decides.
        epochs: passes over the train split.
        frames: train on so many frames only, evenly spread over the split; 0 is all.
        batch_size: pictures per step, over all processes.
        accumulate: parts that a batch is worked through in, which weigh alike; BatchNorm sees each by itself, and so
            does the threshold of BerHu.
        optimizer: "adamw", "adam" or "sgd" (momentum 0.9).
        lr: peak learning rate.
        encoder_lr: factor on it for the encoder.
        weight_decay: not applied to biases and normalisation.
        stochastic_depth: probability that the encoder's last residual block is left out for a sample; it rises
            linearly from the first (Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016).
        schedule: "onecycle", "constant", or "step" (a tenth after each third).
        warmup: share of the steps in which "onecycle" rises.
        frozen_encoder_epochs: epochs at the start in which the encoder, its BatchNorm too, stays as it is.
        freeze_batchnorm: keep all BatchNorm statistics as they are.
        sync_batchnorm: BatchNorm over all processes; CUDA only.
        recompute: save memory by computing activations again in the backward pass.
        clip: largest norm of the gradient; 0 is off.
        ema: decay of the exponential moving average of the weights, after n updates at most (1 + n) / (10 + n); 0 is
            off.
        loss: weight by name of a registered loss; they are summed.
        loss_options: arguments of losses that take any, by name.
        precision: "bf16" or "fp16" (autocast; losses and head stay float32), or "fp32".
        nonfinite: what a loss that is not finite does: "stop" the run, or "skip" the batch and count it.
        max_bad: share of unreadable samples that is left out, each named, before the run stops.
        patience: validations without a better one before the run stops; 0 is never.
        seed: of the initialisation, the order and the augmentation.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        mix: share of each batch that comes from the second data set, where one is given.
        tag: of the weights that come out.
        augment: how train samples are varied.
        teacher: pseudo-labels for pictures without depth.
    """

    model: str = "unet_mobilenet_v3"
    head: str = "sigmoid"
    model_options: dict[str, Any] = field(default_factory=dict)
    encoder_weights: str = "none"
    init: str = ""
    size: tuple[int, int] = (192, 256)
    first_size: tuple[int, int] = (96, 128)
    first_share: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()
    balance: float = 0.0
    steps: int = 0
    epochs: int = 10
    frames: int = 0
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    encoder_lr: float = 1.0
    weight_decay: float = 0.01
    stochastic_depth: float = 0.0
    schedule: str = "onecycle"
    warmup: float = 0.1
    frozen_encoder_epochs: float = 0.0
    freeze_batchnorm: bool = False
    sync_batchnorm: bool = False
    recompute: bool = False
    clip: float = 1.0
    ema: float = 0.0
    loss: dict[str, float] = field(default_factory=lambda: {"mse": 1.0})
    loss_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    precision: str = "bf16"
    nonfinite: str = "stop"
    max_bad: float = 0.0
    patience: int = 0
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 500
    mix: float = 0.0
    tag: str = "nyu"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        choices = {
            "head": ("sigmoid", "linear"),
            "optimizer": ("adamw", "adam", "sgd"),
            "schedule": ("onecycle", "constant", "step"),
            "precision": ("bf16", "fp16", "fp32"),
            "nonfinite": ("stop", "skip"),
        }
        for key, values in choices.items():
            if getattr(self, key) not in values:
                raise RecipeError(f"{key} = {getattr(self, key)!r}: expected one of {', '.join(values)}")
        for key, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RecipeError(f"{key} = {value}: expected a finite number")
        for key in ("batch_size", "accumulate", "validate_every", "checkpoint_every", "lr"):
            if getattr(self, key) <= 0:
                raise RecipeError(f"{key} = {getattr(self, key)!r}: expected more than 0")
        for key, size in (
            ("size", self.size),
            ("first_size", self.first_size),
            *(("sizes", s) for s in self.sizes),
        ):
            if min(size) < 32:
                raise RecipeError(f"{key} = {list(size)}: expected [height, width], both at least 32")
        for key in (
            *("steps", "epochs", "frames", "clip", "patience", "seed"),
            *("weight_decay", "encoder_lr", "frozen_encoder_epochs"),
        ):
            if getattr(self, key) < 0:
                raise RecipeError(f"{key} = {getattr(self, key)}: expected 0 or more")
        if not self.steps and not self.epochs:
            raise RecipeError("steps or epochs must be more than 0")
        for key in ("mix", "ema", "first_share", "max_bad", "warmup", "stochastic_depth"):
            if not 0 <= getattr(self, key) < 1:
                raise RecipeError(f"{key} = {getattr(self, key)}: expected 0 <= {key} < 1")
        if not 0 <= self.balance <= 1:
            raise RecipeError(f"balance = {self.balance}: expected 0 to 1")
        for key in ("blur", "jpeg", "noise"):
            if not 0 <= getattr(self.augment, key) <= 1:
                raise RecipeError(f"augment.{key} = {getattr(self.augment, key)}: expected 0 to 1")
        if self.mix + self.pseudo_share >= 1:
            raise RecipeError(
                f"mix = {self.mix:g} and teacher.share = {self.pseudo_share:g} leave no room for the data set itself"
            )
        if self.batch_size % self.accumulate:
            raise RecipeError(
                f"batch_size = {self.batch_size} is not a multiple of accumulate = {self.accumulate}"
            )
        if not 0 < self.augment.zoom[0] <= self.augment.zoom[1]:
            raise RecipeError(
                f"augment.zoom = {list(self.augment.zoom)}: expected [smallest, largest], both above 0"
            )

    @property
    def pseudo_share(self) -> float:
        """Share of each batch that a teacher has labelled; 0 without a teacher."""
        return self.teacher.share if self.teacher.model else 0.0


def load_recipe(path: str | Path, **overrides: Any) -> TrainConfig:
    """Reads a TOML recipe; ``overrides`` that are not None replace its values, "augment.zoom" that of a table.

    A recipe may name another one that it builds on, ``base = "base/labelled.toml"``, relative to itself: each key
    that it has replaces the base's, a table as a whole.

    Raises:
        RecipeError: for a file that is missing or no TOML, an unknown key (with the closest), a wrong type or value.
    """
    content = _read(Path(path), ())
    try:
        for key, value in overrides.items():
            if value is not None:
                _override(content, key, value)
        config: TrainConfig = _fill(TrainConfig, content, "")
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from None
    return config


def _override(content: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    for part in tables:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{key}: {part} is no table")
    content[name] = value


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe's table on top of its base's."""
    if path.resolve() in above:
        raise RecipeError(f"recipe {path}: base leads back to it")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from None
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise RecipeError(f"recipe {path}: base = {base!r}: expected str")
    return _read(path.parent / base, (*above, path.resolve())) | content


def _fill(kind: type, content: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise RecipeError(f"unknown key {prefix + key!r}: {suggest(key, hints)}")
    return kind(**{key: _convert(hints[key], value, prefix + key) for key, value in content.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{key} must be a table, not {value!r}")
        return _fill(hint, value, f"{key}.")  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple) and arguments[1:] == (...,):
        return tuple(_convert(arguments[0], item, key) for item in value)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_convert(part, item, key) for part, item in zip(arguments, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, and to nobody else.
    if origin is None and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    name = str(hint) if origin else getattr(hint, "__name__", str(hint))
    raise RecipeError(f"{key} = {value!r}: expected {name}")


def to_toml(config: TrainConfig) -> str:
    """All resolved values as TOML, which :func:`load_recipe` reads back."""
    values = dataclasses.asdict(config)
    tables = {key: values.pop(key) for key in ("loss", "model_options", "loss_options", "augment", "teacher")}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    options = tables.pop("loss_options")
    for name, table in tables.items():
        if name == "model_options" and not table:
            continue
        lines += ["", f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
    for name, table in options.items():
        lines += [
            "",
            f"[loss_options.{name}]",
            *(f"{key} = {_toml_value(value)}" for key, value in table.items()),
        ]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return json.dumps(list(value) if isinstance(value, tuple) else value)
