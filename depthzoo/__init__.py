"""depthzoo: depth in metres from one picture.

>>> import depthzoo
>>> model = depthzoo.create_model("unet_resnet50")          # trained
>>> prediction = depthzoo.Predictor(model)("photo.jpg")
>>> prediction.depth                                        # float32, (H, W), metres
"""

from depthzoo.losses import DepthLoss
from depthzoo.metrics import DepthMetrics
from depthzoo.models import (
    DepthModel,
    dispnet_vgg16,
    unet,
    unet_bilinear,
    unet_mobilenet_v3,
    unet_resnet50,
    unet_resnet50_heavy,
)
from depthzoo.predictor import Prediction, Predictor, predictor
from depthzoo.registry import (
    create_loss,
    create_model,
    list_losses,
    list_models,
    register_loss,
    register_model,
)
from depthzoo.version import __version__

__all__ = [
    "DepthLoss",
    "DepthMetrics",
    "DepthModel",
    "Prediction",
    "Predictor",
    "__version__",
    "create_loss",
    "create_model",
    "dispnet_vgg16",
    "list_losses",
    "list_models",
    "predictor",
    "register_loss",
    "register_model",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]
