"""depthzoo: depth in metres from one image.

>>> import depthzoo
>>> model = depthzoo.load("unet_resnet50")                  # trained; or a .safetensors file, or a run folder
>>> prediction = depthzoo.Predictor(model)("photo.jpg")
>>> prediction.depth                                        # float32, (H, W), metres

``import depthzoo`` itself imports nothing more: a name imports its module, and with it PyTorch, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from depthzoo.errors import DatasetError, WeightsError
    from depthzoo.images import load_image
    from depthzoo.losses import DepthLoss, create_loss, list_losses, register_loss
    from depthzoo.metrics import DepthMetrics
    from depthzoo.models import DepthModel, create_model, from_pretrained, list_models, load, register_model
    from depthzoo.models.dispnet import dispnet_vgg16
    from depthzoo.models.mobilenet import unet_mobilenet_v3
    from depthzoo.models.resnet import unet_resnet50, unet_resnet50_heavy
    from depthzoo.models.unet import unet, unet_bilinear
    from depthzoo.prediction import Prediction, Predictor, predictor
else:
    # The public names by the module that has them; a test compares them with those above.
    _NAMES = {
        "errors": ("DatasetError", "WeightsError"),
        "images": ("load_image",),
        "losses": ("DepthLoss", "create_loss", "list_losses", "register_loss"),
        "metrics": ("DepthMetrics",),
        "models": ("DepthModel", "create_model", "from_pretrained", "list_models", "load", "register_model"),
        "models.dispnet": ("dispnet_vgg16",),
        "models.mobilenet": ("unet_mobilenet_v3",),
        "models.resnet": ("unet_resnet50", "unet_resnet50_heavy"),
        "models.unet": ("unet", "unet_bilinear"),
        "prediction": ("Prediction", "Predictor", "predictor"),
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names}
    _SUBMODULES = (
        "camera",
        "colormaps",
        "errors",
        "images",
        "losses",
        "metrics",
        "models",
        "prediction",
        "video",
        "visualize",
        "weights",
    )

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"depthzoo.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'depthzoo' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"depthzoo.{_MODULES[name]}"), name)
        globals()[name] = value  # the next time it is found without this function
        return value

    def __dir__() -> list[str]:
        return sorted([*__all__, *_SUBMODULES])


__all__ = [
    "DatasetError",
    "DepthLoss",
    "DepthMetrics",
    "DepthModel",
    "Prediction",
    "Predictor",
    "WeightsError",
    "__version__",
    "create_loss",
    "create_model",
    "dispnet_vgg16",
    "from_pretrained",
    "list_losses",
    "list_models",
    "load",
    "load_image",
    "predictor",
    "register_loss",
    "register_model",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]
