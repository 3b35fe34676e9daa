"""The architectures; importing this registers all of them."""

from depthzoo.models.blocks import DepthModel
from depthzoo.models.dispnet import dispnet_vgg16
from depthzoo.models.mobilenet import unet_mobilenet_v3
from depthzoo.models.resnet import unet_resnet50, unet_resnet50_heavy
from depthzoo.models.unet import unet, unet_bilinear

__all__ = [
    "DepthModel",
    "dispnet_vgg16",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]
