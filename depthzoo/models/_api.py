"""The registry of models, and how a model is built and loaded."""

import fnmatch
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from depthzoo import weights as zoo_weights
from depthzoo.errors import WeightsError, one_line, suggest
from depthzoo.models.base import DepthHead, DepthModel

Weights: TypeAlias = str | os.PathLike[str] | None  # "DEFAULT", a tag, a path, or None
Builder = TypeVar("Builder", bound=Callable[..., Any])

BUILDERS: dict[str, Callable[..., Any]] = {}


def register_model(builder: Builder) -> Builder:
    """Register a model builder under its function name. Used as a decorator.

    Raises:
        ValueError: if the name is taken.
    """
    name = builder.__name__
    if name in BUILDERS:
        raise ValueError(f"model {name!r} is already registered, by {BUILDERS[name].__module__}")
    BUILDERS[name] = builder
    return builder


def list_models(pattern: str | None = None, pretrained: bool = False) -> list[str]:
    """Return the names of the registered models in alphabetical order.

    Args:
        pattern: shell-style, as in ``"*resnet*"``.
        pretrained: only models that have trained weights.
    """
    names = sorted(name for name in BUILDERS if pattern is None or fnmatch.fnmatchcase(name, pattern))
    return [name for name in names if zoo_weights.tags(name)] if pretrained else names


def get_builder(name: str) -> Callable[..., Any]:
    """Return the builder registered as ``name``.

    Raises:
        ValueError: for an unknown name; the message suggests the closest ones.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}: {suggest(name, BUILDERS)}")
    return BUILDERS[name]


def create_model(name: str, *, weights: Weights = "DEFAULT", **options: Any) -> DepthModel:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        weights: "DEFAULT", a tag ("nyu"), a path to a .safetensors file or a run folder, or None for random
            initialization, which reads no file and uses no network.
        **options: the options of the builder, see its docstring.

    Raises:
        ValueError: for an unknown name (the closest ones are suggested), or weights that cannot be loaded.
        TypeError: for an option that the builder does not have (the closest ones are suggested).
    """
    builder = get_builder(name)
    parameters = inspect.signature(builder).parameters
    for option in options:
        if option not in parameters:
            raise TypeError(f"{name}: unknown option {option!r}: {suggest(option, parameters)}")
    model: DepthModel = builder(weights=weights, **options)
    return model


def build_model(
    network: Callable[..., DepthModel],
    name: str,
    weights: Weights,
    encoder_weights: Weights,
    options: dict[str, Any],
    torchvision_weights: Any = None,
) -> DepthModel:
    """Build a registered model and load its weights.

    Args:
        network: takes ``options`` and returns the model.
        name: name of the builder.
        weights, encoder_weights: see the builders.
        options: of ``network``; None is left out. Trained weights bring their own, which these must not contradict.
        torchvision_weights: torchvision's weights of the encoder; None if there are none.

    Raises:
        ValueError: for weights of another model, options that contradict the weights, or weights that cannot be loaded.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if weights is None:
        model = network(**options)
        model.name, model.arguments = name, options
        _load_encoder(model, encoder_weights, torchvision_weights)
        return model
    if encoder_weights is not None:
        raise ValueError(f"{name}: encoder_weights are for a fresh model; add weights=None")
    path = zoo_weights.find(name, weights)
    card = zoo_weights.read_metadata(path)
    if card.get("model", name) != name:
        raise WeightsError(f"{path}: holds weights of {card['model']}, not of {name}")
    # A file of another origin does not say how its model was built; the caller does.
    arguments = card.get("arguments", options)
    for key, value in options.items():
        trained = arguments.get(key, _default(network, key))
        if value != trained:
            raise ValueError(f"{name}: {path.name} was trained with {key}={trained!r}, not {value!r}")
    model = network(**arguments)
    model.name, model.arguments, model.card = name, arguments, card
    zoo_weights.load_into(model, path)
    return model.eval()


def _default(network: Callable[..., DepthModel], option: str) -> Any:
    """Value of an option that a card does not state."""
    parameters = {**inspect.signature(DepthHead).parameters, **inspect.signature(network).parameters}
    return parameters[option].default


def _load_encoder(model: DepthModel, encoder_weights: Weights, torchvision_weights: Any) -> None:
    body = model.encoder.body
    if encoder_weights is None:
        return
    if encoder_weights != "imagenet":
        zoo_weights.load_into(body, encoder_weights)
        return
    if torchvision_weights is None:
        raise ValueError(
            f"{model.name}: encoder_weights='imagenet': torchvision has none for this encoder; use None or a path"
        )
    try:
        state = torchvision_weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # torch.hub raises RuntimeError for a wrong digest
        raise WeightsError(
            f"encoder_weights='imagenet': cannot download {torchvision_weights.url}: {one_line(error)}; without a "
            "network use None or a path"
        ) from error
    # Without the classifier. VGG's file lacks num_batches_tracked, which BatchNorm then fills in.
    own = body.state_dict()
    body.load_state_dict({key: value for key, value in state.items() if key in own}, strict=True)
