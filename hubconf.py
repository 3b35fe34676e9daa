"""The entry points of torch.hub: the models, and ``predictor`` for one with its preprocessing around it."""

from depthzoo import (
    dispnet_vgg16,
    predictor,
    unet,
    unet_bilinear,
    unet_mobilenet_v3,
    unet_resnet50,
    unet_resnet50_heavy,
)

dependencies = ["torch", "torchvision", "numpy", "PIL", "safetensors"]

__all__ = [
    "dispnet_vgg16",
    "predictor",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]
