"""Networks that a user would choose instead, with random weights: speed does not depend on them.

Each has the architecture of its published weights. Those of transformers are built from configurations given here,
which would otherwise be downloaded. The extra ``peers`` installs the packages.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torchvision.models import segmentation

SMP, TRANSFORMERS = "segmentation_models_pytorch", "transformers"


class Dense(nn.Module):
    """Wraps a network so that it maps (N, 3, H, W) to one map of (N, 1, h, w).

    Args:
        network: the network.
        output: name of the map among its outputs; None if the map is all that it returns.
    """

    def __init__(self, network: nn.Module, output: str | None = None) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, image: Tensor) -> Tensor:
        result = self.network(image)
        found: Tensor = result if self.output is None else result[self.output]
        return found if found.ndim == 4 else found.unsqueeze(1)


def smp_unet(encoder: str) -> nn.Module:
    """The U-Net of segmentation_models_pytorch with its defaults."""
    smp = import_module(SMP)
    return Dense(smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1))


def deeplabv3_resnet50() -> nn.Module:
    network = segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=1, aux_loss=False
    )
    return Dense(network, "out")


def lraspp_mobilenet_v3_large() -> nn.Module:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1)
    return Dense(network, "out")


def depth_anything_v2_small() -> nn.Module:
    """DINOv2 ViT-S/14 with a DPT decoder: huggingface.co/depth-anything/Depth-Anything-V2-Small-hf."""
    transformers = import_module(TRANSFORMERS)
    encoder = transformers.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=encoder,
        patch_size=14,
        reassemble_hidden_size=384,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )
    return Dense(transformers.DepthAnythingForDepthEstimation(config), "predicted_depth")


def dpt_swinv2_tiny() -> nn.Module:
    """The small network of MiDaS 3.1: huggingface.co/Intel/dpt-swinv2-tiny-256."""
    transformers = import_module(TRANSFORMERS)
    encoder = transformers.Swinv2Config(
        image_size=256,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.DPTConfig(backbone_config=encoder, neck_hidden_sizes=[96, 192, 384, 768])
    return Dense(transformers.DPTForDepthEstimation(config), "predicted_depth")


def glpn_nyu() -> nn.Module:
    """GLPN with a Mix Transformer B4: huggingface.co/vinvino02/glpn-nyu."""
    transformers = import_module(TRANSFORMERS)
    config = transformers.GLPNConfig(
        hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=64, depths=[3, 8, 27, 3]
    )
    return Dense(transformers.GLPNForDepthEstimation(config), "predicted_depth")


@dataclass(frozen=True)
class Peer:
    """A network: how to build it, the package it needs, its parameters, and what its input is a multiple of."""

    build: Callable[[], nn.Module]
    package: str
    parameters: int
    multiple: int


PEERS = {
    "smp_unet_resnet50": Peer(lambda: smp_unet("resnet50"), SMP, 32_521_105, 32),
    "smp_unet_mobilenet_v2": Peer(lambda: smp_unet("mobilenet_v2"), SMP, 6_628_945, 32),
    "deeplabv3_resnet50": Peer(deeplabv3_resnet50, "torchvision", 39_633_729, 1),
    "lraspp_mobilenet_v3_large": Peer(lraspp_mobilenet_v3_large, "torchvision", 3_218_138, 1),
    "depth_anything_v2_small": Peer(depth_anything_v2_small, TRANSFORMERS, 24_785_089, 14),
    "dpt_swinv2_tiny": Peer(dpt_swinv2_tiny, TRANSFORMERS, 40_930_795, 32),
    "glpn_nyu": Peer(glpn_nyu, TRANSFORMERS, 61_220_903, 32),
}


def nearest(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the nearest (H, W) in multiples; halfway between two, the larger one."""
    height, width = (max(1, math.floor(side / multiple + 0.5)) * multiple for side in size)
    return height, width


def build_peer(name: str) -> nn.Module:
    """Build a peer in eval mode, with the same random weights each time.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    package = PEERS[name].package
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed: pip install -e '.[peers]'", name=package)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of transformers
    torch.manual_seed(0)
    return PEERS[name].build().eval()
