"""The models: a registry, and one file per architecture."""

from depthzoo.models import dispnet, mobilenet, resnet, unet  # noqa: F401 - importing a file registers its models
from depthzoo.models._api import create_model, from_pretrained, get_builder, list_models, load, register_model
from depthzoo.models.base import DepthModel

__all__ = [
    "DepthModel",
    "create_model",
    "from_pretrained",
    "get_builder",
    "list_models",
    "load",
    "register_model",
]
