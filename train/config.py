"""Configuration of a run: one dataclass, filled from a TOML recipe and then from flags."""

import dataclasses
import json
import math
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthzoo.errors import suggest

# Other names that people try.
SYNONYMS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "max_epochs": "epochs",
    "epoch": "epochs",
    "grad_clip": "clip",
}
# Keys that a resumed run may change; all others decide what it has done so far.
CHANGEABLE = ("steps", "epochs", "lr", "validate_every", "checkpoint_every", "nonfinite", "tag")
CHOICES = {
    "head": ("sigmoid", "linear"),
    "optimizer": ("adamw", "adam", "sgd"),
    "schedule": ("onecycle", "constant", "step"),
    "precision": ("bf16", "fp16", "fp32"),
    "nonfinite": ("stop", "skip"),
}
POSITIVE = ("batch_size", "accumulate", "validate_every", "checkpoint_every", "lr")
NOT_NEGATIVE = ("steps", "epochs", "frames", "clip", "seed", "weight_decay", "encoder_lr")
FRACTIONS = ("ema", "warmup", "warmup_size_fraction", "stochastic_depth")


@dataclass(frozen=True)
class AugmentConfig:
    """How training samples are varied; see ``train.augment``. All off by default.

    Attributes:
        flip: mirror left and right with probability 1/2.
        zoom: smallest and largest magnification, uniform in its logarithm; depth is divided by it.
        rotate: largest rotation in degrees, in both directions.
        brightness, contrast, saturation: largest relative change.
        gamma: largest exponent; its inverse is the smallest.
        channel_swap: probability of a random order of the color channels.
        grey: probability of a grey image.
        blur: probability of a blur of up to 1.5 pixels (standard deviation).
        noise: largest standard deviation of the sensor noise, for colors in [0, 1]; uniform for each image.
        jpeg: probability of JPEG artefacts, with quality 30 to 95.
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
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines the result of a run. Recipes have keys, and the command flags, of these names.

    Attributes:
        imports: modules to import first, which register models and losses of your own.
        model: name of a registered model.
        head: of the model, "sigmoid" or "linear".
        model_options: other options of the model's builder.
        encoder_weights: "none", "imagenet" or a path to a safetensors file of the encoder.
        init: whole model to start from: a name of the zoo, the folder of a run, a safetensors file, or "".
        size: (H, W) of the training images; also the working size of the weights. The flag --size also clears
            ``sizes``.
        sizes: (H, W) of which each step draws one, so that the weights are accurate at all of them; empty for
            ``size`` alone. Validation uses ``size``.
        warmup_size: (H, W) in the first ``warmup_size_fraction`` of the steps; small images make cheap steps (Howard
            et al., fastai's DAWNBench entry, 2018).
        warmup_size_fraction: fraction of the steps at ``warmup_size``; 0 is off.
        mix: fraction of each batch that comes from each further data set, in the order of --mix-data.
        balance: 0 draws each train frame once an epoch; up to 1, frames of a rare median depth are drawn more often,
            by the inverse of its density to this power.
        steps: optimizer steps; 0 to use ``epochs``.
        epochs: passes over the train split.
        frames: use only this many train frames, evenly spread over the split; 0 for all.
        batch_size: images in a step, over all processes.
        accumulate: parts into which a batch is split to save memory. BatchNorm and the threshold of BerHu see one
            part at a time.
        optimizer: "adamw", "adam" or "sgd" (momentum 0.9).
        lr: peak learning rate.
        encoder_lr: factor on it for the encoder.
        weight_decay: not applied to biases and normalization.
        stochastic_depth: probability of skipping the encoder's last residual block for a sample; it rises linearly
            from the first block (Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016).
        schedule: "onecycle", "constant", or "step" (divided by ten after each third).
        warmup: fraction of the steps in which "onecycle" rises.
        freeze_batchnorm: keep all BatchNorm statistics fixed.
        checkpoint_activations: save memory by computing activations again in the backward pass.
        clip: largest norm of the gradient; 0 is off.
        ema: decay of the exponential moving average of the weights, at most (1 + n) / (10 + n) after n updates; 0 is
            off.
        loss: weight of each registered loss in the sum.
        loss_options: arguments of the losses, by name.
        precision: "bf16" or "fp16" (autocast; losses and head stay float32), or "fp32".
        nonfinite: what to do at a loss or gradient that is not finite: "stop" the run, or "skip" the batch and count
            it.
        seed: of the initialization, the order and the augmentation.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        tag: of the resulting weights.
        augment: how training samples are varied.
    """

    imports: tuple[str, ...] = field(default=(), metadata={"flag": "--import"})
    model: str = "unet_mobilenet_v3"
    head: str = "sigmoid"
    model_options: dict[str, Any] = field(default_factory=dict)
    encoder_weights: str = "none"
    init: str = ""
    size: tuple[int, int] = (192, 256)
    sizes: tuple[tuple[int, int], ...] = ()
    warmup_size: tuple[int, int] = (96, 128)
    warmup_size_fraction: float = 0.0
    mix: tuple[float, ...] = ()
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
    freeze_batchnorm: bool = False
    checkpoint_activations: bool = False
    clip: float = 1.0
    ema: float = 0.0
    loss: dict[str, float] = field(default_factory=lambda: {"mse": 1.0})
    loss_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    precision: str = "bf16"
    nonfinite: str = "stop"
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 500
    tag: str = "nyu"
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for key, values in CHOICES.items():
            _expect(getattr(self, key) in values, self, key, f"one of {', '.join(values)}")
        for key, value in vars(self).items():
            _expect(not isinstance(value, float) or math.isfinite(value), self, key, "a finite number")
        for key in POSITIVE:
            _expect(getattr(self, key) > 0, self, key, "more than 0")
        for key in NOT_NEGATIVE:
            _expect(getattr(self, key) >= 0, self, key, "0 or more")
        for key in FRACTIONS:
            _expect(0 <= getattr(self, key) < 1, self, key, f"0 <= {key} < 1")
        for key in ("size", "warmup_size"):
            _expect(min(getattr(self, key)) >= 32, self, key, "[height, width], both at least 32")
        smallest = min((min(size) for size in self.sizes), default=32)
        _expect(smallest >= 32, self, "sizes", "pairs [height, width], both at least 32")
        _expect(0 <= self.balance <= 1, self, "balance", "0 to 1")
        _expect(all(f > 0 for f in self.mix) and sum(self.mix) < 1, self, "mix", "fractions, in sum below 1")
        for key in ("blur", "jpeg", "noise"):
            _expect(0 <= getattr(self.augment, key) <= 1, self.augment, key, "0 to 1", "augment.")
        low, high = self.augment.zoom
        _expect(0 < low <= high, self.augment, "zoom", "[smallest, largest], both above 0", "augment.")
        _expect(self.steps + self.epochs > 0, self, "epochs", "more than 0, or steps")
        _expect(self.batch_size % self.accumulate == 0, self, "batch_size", "a multiple of accumulate")


def _expect(condition: bool, config: Any, key: str, what: str, table: str = "") -> None:
    if not condition:
        raise ValueError(f"{table}{key} = {_toml_value(getattr(config, key))}: expected {what}")


def load_recipe(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read a TOML recipe.

    A recipe may name another one to start from, ``base = "base/labelled.toml"``, relative to itself: each of its keys
    replaces the base's, a table as a whole.

    Args:
        path: of the recipe.
        **overrides: values that replace the recipe's unless they are None; "augment.zoom" is a key of a table.

    Raises:
        ValueError: a file that is missing or not TOML, an unknown key (the closest one is suggested), a wrong type or
            value.
    """
    content = _read(Path(path), ())
    try:
        for key, value in overrides.items():
            if value is not None:
                _override(content, key, value)
        config: TrainConfig = _fill(TrainConfig, content, "")
    except ValueError as error:
        raise ValueError(f"recipe {path}: {error}") from None
    return config


def parse_config(text: str) -> TrainConfig:
    """Read the configuration that :func:`to_toml` wrote."""
    config: TrainConfig = _fill(TrainConfig, tomllib.loads(text), "")
    return config


def _override(content: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    for part in tables:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise ValueError(f"{key}: {part} is no table")
    content[name] = value


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return a recipe's table on top of its base's."""
    if path.resolve() in above:
        raise ValueError(f"recipe {path}: base leads back to it")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {path} is not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"recipe {path}: base = {base!r}: expected str")
    return _read(path.parent / base, (*above, path.resolve())) | content


def _fill(kind: type, content: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            known = f"did you mean {SYNONYMS[key]!r}?" if key in SYNONYMS else suggest(key, hints)
            raise ValueError(f"unknown key {prefix + key!r}: {known}")
    return kind(**{key: _convert(hints[key], value, prefix + key) for key, value in content.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be a table, not {value!r}")
        return _fill(hint, value, f"{key}.")  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == tuple[float, ...] and isinstance(value, int | float):
        value = [value] if value else []  # mix = 0.25
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
    # bool is an int in Python, and not in a recipe.
    if origin is None and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    name = str(hint) if origin else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{key} = {value!r}: expected {name}")


def to_toml(config: TrainConfig) -> str:
    """Return all resolved values as TOML, which :func:`load_recipe` reads back."""
    values = dataclasses.asdict(config)
    tables = {
        key: values.pop(key) for key, value in dataclasses.asdict(config).items() if isinstance(value, dict)
    }
    tables |= {f"loss_options.{name}": table for name, table in tables.pop("loss_options").items()}
    lines = _toml_lines(values)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_toml_lines(table)]
    return "\n".join(lines) + "\n"


def _toml_lines(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml_value(value)}" for key, value in table.items()]


def _toml_value(value: Any) -> str:
    # Strings, numbers, booleans and arrays are the same in JSON.
    return json.dumps(value)
