"""Two tables of builders, models and losses, each keyed by the builder's own name."""

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from depthzoo.losses import DepthLoss
    from depthzoo.models.blocks import DepthModel

Builder = TypeVar("Builder", bound=Callable[..., Any])


def closest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown ``name``: the closest names, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + ", ".join(map(repr, near)) + "?"
    return "there are: " + (", ".join(known) if known else "none")


class Registry:
    """Builders by name.

    Args:
        kind: what is registered, for the error messages ("model", "loss").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, builder: Builder) -> Builder:
        """Decorator: enters ``builder`` under its function or class name.

        Raises:
            ValueError: if the name is taken.
        """
        name = builder.__name__
        if name in self._builders:
            raise ValueError(
                f"{self.kind} {name!r} is registered already, by {self._builders[name].__module__}"
            )
        self._builders[name] = builder
        return builder

    def get(self, name: str) -> Callable[..., Any]:
        """The builder called ``name``.

        Raises:
            ValueError: if there is none; the message has the closest names.
        """
        if name not in self._builders:
            raise ValueError(f"unknown {self.kind} {name!r}: {closest(name, self._builders)}")
        return self._builders[name]

    def names(self, pattern: str | None = None) -> list[str]:
        """All names in alphabetical order, or those that match a shell-style ``pattern``."""
        return sorted(n for n in self._builders if pattern is None or fnmatch.fnmatchcase(n, pattern))


MODELS = Registry("model")
LOSSES = Registry("loss")


def register_model(builder: Builder) -> Builder:
    """Decorator that enters a model builder under its function name; a duplicate raises ``ValueError``."""
    return MODELS.register(builder)


def list_models(pattern: str | None = None) -> list[str]:
    """Names of the models, in alphabetical order; ``pattern`` is a shell-style one (``"*resnet*"``)."""
    return MODELS.names(pattern)


def create_model(name: str, *, weights: Any = "DEFAULT", **options: Any) -> "DepthModel":
    """Builds the model called ``name``.

    Args:
        name: one of :func:`list_models`.
        weights: ``"DEFAULT"``, a tag (``"nyu"``), a path to a ``.safetensors`` file or a run's folder, or ``None``
            for random initialisation, which touches neither files nor the network.
        **options: the builder's own, see its docstring.

    Raises:
        ValueError: for an unknown name (with the closest ones), and whatever the weights raise.
        TypeError: for an option that the builder does not have (with the closest ones).
    """
    builder = MODELS.get(name)
    parameters = inspect.signature(builder).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters]
        for option in options:
            if option not in known:
                raise TypeError(f"{name}: unknown option {option!r}: {closest(option, known)}")
    return builder(weights=weights, **options)


def register_loss(builder: Builder) -> Builder:
    """Decorator that enters a loss class or function under its name; a duplicate raises ``ValueError``."""
    return LOSSES.register(builder)


def list_losses(pattern: str | None = None) -> list[str]:
    """Names of the losses, in alphabetical order; ``pattern`` is a shell-style one."""
    return LOSSES.names(pattern)


def create_loss(name: str, **options: Any) -> "DepthLoss":
    """Builds the loss called ``name`` with its own ``options``.

    Raises:
        ValueError: for an unknown name (with the closest ones).
    """
    return LOSSES.get(name)(**options)
