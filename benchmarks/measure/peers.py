"""Networks that a user would pick instead, at random weights: speed does not depend on them, and none is downloaded.

Each has the architecture of its published weights. Those of transformers are given here as configurations, which
would otherwise be fetched; ``source`` says where they are published. The extra ``peers`` has the packages.

Of MiDaS, transformers has no "small" of version 2.1 (an EfficientNet-Lite3, in torch.hub only); the small one that it
does have is DPT with a SwinV2-Tiny encoder of version 3.1.
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

# What the published preprocessing makes of a picture of this size is a peer's native size.
PICTURE = (480, 640)
SMP, TRANSFORMERS = "segmentation_models_pytorch", "transformers"


@dataclass(frozen=True)
class Peer:
    """One network.

    Attributes:
        build: makes it, random, without the network.
        package: what must be importable.
        parameters: as published, or counted from the published configuration.
        native: (H, W) that its own preprocessing makes of a 480x640 picture.
        multiple: height and width of its input are multiples of this.
        source: of the configuration and of ``native``.
    """

    build: Callable[[], nn.Module]
    package: str
    parameters: int
    native: tuple[int, int]
    multiple: int
    source: str

    def at(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The input size that it takes nearest to ``size``; None asks for its native one."""
        return self.native if size is None else nearest(size, self.multiple)


def nearest(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(H, W) in multiples, the larger one in the middle between two, as 256 for 240 in multiples of 32."""
    height, width = (max(1, math.floor(side / multiple + 0.5)) * multiple for side in size)
    return height, width


class Dense(nn.Module):
    """(N, 3, H, W) in, one map of (N, 1, h, w) out, whatever a network wraps it in; of the values nothing is claimed.

    Args:
        network: what is wrapped.
        output: under this name it returns the map; None: it returns nothing else.
    """

    def __init__(self, network: nn.Module, output: str | None = None) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, image: Tensor) -> Tensor:
        result = self.network(image)
        found: Tensor = result if self.output is None else result[self.output]
        return found if found.ndim == 4 else found.unsqueeze(1)


def smp_unet(encoder: str) -> nn.Module:
    """segmentation_models_pytorch's U-Net as its README makes one."""
    smp = import_module(SMP)
    return Dense(smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1))


def deeplabv3_resnet50() -> nn.Module:
    """torchvision's, as it is without an auxiliary head."""
    return Dense(
        segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1, aux_loss=False),
        "out",
    )


def lraspp_mobilenet_v3_large() -> nn.Module:
    """torchvision's."""
    return Dense(
        segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1), "out"
    )


def depth_anything_v2_small() -> nn.Module:
    """DINOv2 ViT-S/14 with a DPT decoder."""
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
    """MiDaS 3.1's small one."""
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
    """GLPN with a Mix Transformer B4."""
    transformers = import_module(TRANSFORMERS)
    config = transformers.GLPNConfig(
        hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=64, depths=[3, 8, 27, 3]
    )
    return Dense(transformers.GLPNForDepthEstimation(config), "predicted_depth")


TORCHVISION = "torchvision; its weights' transforms take the shorter side to 520"
PEERS = {
    "smp_unet_resnet50": Peer(
        lambda: smp_unet("resnet50"), SMP, 32_521_105, PICTURE, 32, "its defaults; no size of its own"
    ),
    "smp_unet_mobilenet_v2": Peer(
        lambda: smp_unet("mobilenet_v2"), SMP, 6_628_945, PICTURE, 32, "its defaults; no size of its own"
    ),
    "deeplabv3_resnet50": Peer(deeplabv3_resnet50, "torchvision", 39_633_729, (520, 693), 1, TORCHVISION),
    "lraspp_mobilenet_v3_large": Peer(
        lraspp_mobilenet_v3_large, "torchvision", 3_218_138, (520, 693), 1, TORCHVISION
    ),
    # The shorter side becomes 518, the aspect is kept, both are rounded to multiples of 14.
    "depth_anything_v2_small": Peer(
        depth_anything_v2_small,
        TRANSFORMERS,
        24_785_089,
        (518, 686),
        14,
        "huggingface.co/depth-anything/Depth-Anything-V2-Small-hf, config.json and preprocessor_config.json",
    ),
    "dpt_swinv2_tiny": Peer(
        dpt_swinv2_tiny,
        TRANSFORMERS,
        40_930_795,
        (256, 256),
        32,
        "transformers, models/dpt/convert_dpt_swinv2_to_hf.py, of dpt_swin2_tiny_256.pt; "
        "huggingface.co/Intel/dpt-swinv2-tiny-256",
    ),
    "glpn_nyu": Peer(
        glpn_nyu,
        TRANSFORMERS,
        61_220_903,
        PICTURE,
        32,
        "transformers, models/glpn/convert_glpn_to_pytorch.py; huggingface.co/vinvino02/glpn-nyu",
    ),
}


def build_peer(name: str) -> nn.Module:
    """A peer in eval mode, the same random weights each time.

    Raises:
        ModuleNotFoundError: naming the extra, where its package is not installed.
    """
    package = PEERS[name].package
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed: pip install -e '.[peers]'", name=package)
    # Before the first import of anything that could look for something there.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    return PEERS[name].build().eval()
