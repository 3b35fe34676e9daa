"""depthzoo: depth in metres from one image.

>>> import depthzoo
>>> model = depthzoo.create_model("unet_resnet50")          # trained
>>> prediction = depthzoo.Predictor(model)("photo.jpg")
>>> prediction.depth                                        # float32, (H, W), metres
"""

from depthzoo.errors import DatasetError, WeightsError
from depthzoo.images import load_image
from depthzoo.losses import DepthLoss, create_loss, list_losses, register_loss
from depthzoo.metrics import DepthMetrics
from depthzoo.models import DepthModel, create_model, list_models, register_model
from depthzoo.models.dispnet import dispnet_vgg16
from depthzoo.models.mobilenet import unet_mobilenet_v3
from depthzoo.models.resnet import unet_resnet50, unet_resnet50_heavy
from depthzoo.models.unet import unet, unet_bilinear
from depthzoo.prediction import Prediction, Predictor, predictor

__version__ = "0.1.0"

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
    "list_losses",
    "list_models",
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
