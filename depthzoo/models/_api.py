"""The registry of models, and how a model is built and loaded."""

import fnmatch
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

from depthzoo import weights as zoo_weights
from depthzoo.errors import WeightsError, one_line, suggest
from depthzoo.models.base import DepthModel
from depthzoo.models.layers import DepthHead, Head

Weights: TypeAlias = str | os.PathLike[str] | None  # "DEFAULT", a tag, a path, or None
Builder = TypeVar("Builder", bound=Callable[..., Any])


class BuilderOptions(TypedDict, total=False):
    """Options of the builders, for type checkers; see their docstrings. ``width`` is that of the U-Nets of 2015."""

    encoder_weights: Weights
    head: Head
    out_channels: int
    min_depth: float
    max_depth: float
    mean_depth: float
    width: int


class LoadOptions(BuilderOptions, total=False):
    """Options of :func:`load`, for type checkers."""

    weights: Weights
    pretrained: bool | str | None


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


def create_model(
    name: str,
    *,
    weights: Weights = "DEFAULT",
    pretrained: bool | str | None = None,
    **options: Unpack[BuilderOptions],
) -> DepthModel:
    """Build a model by name.

    >>> create_model("unet_resnet50")                        # trained
    >>> create_model("unet_resnet50", pretrained=False, max_depth=80.0, mean_depth=15.0)

    Args:
        name: one of :func:`list_models`.
        weights: "DEFAULT", a tag ("nyu"), a path to a .safetensors file or a run folder, or None for random
            initialization, which reads no file and uses no network.
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        **options: the options of the builder, see its docstring.

    Raises:
        ValueError: for an unknown name (the closest ones are suggested), weights that cannot be loaded, or options that
            contradict them.
        TypeError: for an option that the builder does not have (the closest ones are suggested).
    """
    builder = get_builder(name)
    parameters = inspect.signature(builder).parameters
    for option in options:
        if option not in parameters:
            raise TypeError(f"{name}: unknown option {option!r}: {suggest(option, parameters)}")
    model: DepthModel = builder(weights=_weights(name, weights, pretrained), **options)
    return model


def load(source: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> DepthModel:
    """Load a model from whatever names it.

    >>> load("unet_resnet50")                                # of the zoo
    >>> load("mine.safetensors")                             # written by model.save or by training
    >>> load("runs/mine")                                    # a run of training

    Args:
        source: one of :func:`list_models`, a .safetensors file, or a folder with ``model.safetensors``, as a run of
            training. A file's header says which model it is for, and with which options it was built.
        **options: as for :func:`create_model`; a file takes no ``weights``.

    Raises:
        ValueError: for an unknown name (the closest ones are suggested), or a file that cannot be loaded.
        TypeError: for an option that the builder does not have, or a source that is neither a name nor a path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be the name of a model or a path, not {type(source).__name__}")
    if isinstance(source, str):
        if source in BUILDERS:
            return create_model(source, **options)
        if not zoo_weights.is_path("", source):
            raise ValueError(f"no model and no file {source!r}: {suggest(source, BUILDERS)}")
    for option in options.keys() & {"weights", "pretrained"}:
        raise TypeError(f"{os.fspath(source)}: is a weights file itself; {option} is for the name of a model")
    name = zoo_weights.model_of(source)
    if name not in BUILDERS:
        raise WeightsError(
            f"{os.fspath(source)}: is for the model {name!r}, which is not registered; there are: "
            f"{', '.join(sorted(BUILDERS))}"
        )
    options["weights"] = source
    return create_model(name, **options)


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> DepthModel:
    """Load a model from the Hugging Face Hub, or from a folder that ``model.save_pretrained`` wrote.

    Args:
        source: "USER/NAME" of a repository, which needs huggingface_hub, the extra ``hub``; or what :func:`load` takes.
        **options: of ``huggingface_hub.hf_hub_download``, as ``revision``, ``token`` and ``cache_dir``.

    Raises:
        ImportError: if huggingface_hub is missing.
        WeightsError: if there is no such repository, or its weights cannot be loaded.
    """
    if source in BUILDERS or os.path.exists(source):
        return load(source)
    from depthzoo.hub import download  # an extra

    return load(download(os.fspath(source), **options))


def _weights(name: str, weights: Weights, pretrained: bool | str | None) -> Weights:
    """``weights`` as given in either way."""
    if pretrained is None:
        return weights
    if weights != "DEFAULT":
        raise ValueError(f"{name}: give weights or pretrained, not both")
    if isinstance(pretrained, bool):
        return "DEFAULT" if pretrained else None
    return pretrained


def build_model(
    network: Callable[..., DepthModel],
    name: str,
    weights: Weights,
    pretrained: bool | str | None,
    encoder_weights: Weights,
    options: dict[str, Any],
    torchvision_weights: Any = None,
) -> DepthModel:
    """Build a registered model and load its weights.

    Args:
        network: takes ``options`` and returns the model.
        name: name of the builder.
        weights, pretrained, encoder_weights: see the builders.
        options: of ``network``; None is left out. Trained weights bring their own, which these must not contradict.
        torchvision_weights: torchvision's weights of the encoder; None if there are none.

    Raises:
        ValueError: for weights of another model, options that contradict the weights, or weights that cannot be loaded.
    """
    weights = _weights(name, weights, pretrained)
    options = {key: value for key, value in options.items() if value is not None}
    if weights is None:
        model = network(**options)
        model.name, model.arguments = name, options
        _load_encoder(model, encoder_weights, torchvision_weights)
        return model
    if encoder_weights is not None:
        raise WeightsError(f"{name}: encoder_weights are for a fresh model", "add weights=None")
    path = zoo_weights.find(name, weights)
    card = zoo_weights.read_metadata(path)
    if card.get("model", name) != name:
        raise WeightsError(f"{path}: holds weights of {card['model']}, not of {name}")
    # A file of another origin does not say how its model was built; the caller does.
    arguments = card.get("arguments", options)
    for key, value in options.items():
        trained = arguments.get(key, _default(network, key))
        if value != trained:
            fresh = f"model.reset_head({key}={value!r}) gives trained weights a new head"
            raise WeightsError(
                f"{name}: {path.name} was trained with {key}={trained!r}, not {value!r}",
                fresh if key in inspect.signature(DepthModel.reset_head).parameters else "",
            )
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
