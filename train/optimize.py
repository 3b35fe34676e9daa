"""Learning rates, parameter groups, and what is frozen or recomputed."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck
from torchvision.ops import stochastic_depth

from depthzoo.models import DepthModel
from depthzoo.models.dispnet import VGG16Encoder
from depthzoo.models.layers import Upsample2x
from train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step, 0 <= step < total.

    "onecycle" rises from lr/25 to lr over ``warmup`` of the steps and falls to lr/10000, by cosines (Smith and
    Topin, "Super-Convergence", 2018); "step" divides by ten after each third.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** min(2, 3 * step // total)
    rise = max(1, round(config.warmup * total))
    if step < rise:
        start, end, share = config.lr / 25, config.lr, step / rise
    else:
        start, end, share = config.lr, config.lr / 1e4, (step - rise) / max(1, total - rise)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(model: DepthModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Four groups: encoder and the rest, each with and without weight decay (none on vectors)."""
    encoder = {id(p) for p in model.encoder.parameters()}
    groups: list[dict[str, Any]] = []
    for in_encoder in (True, False):
        for decayed in (True, False):
            parameters = [
                p for p in model.parameters() if (id(p) in encoder) == in_encoder and (p.ndim > 1) == decayed
            ]
            if parameters:
                factor = config.encoder_lr if in_encoder else 1.0
                decay = config.weight_decay if decayed else 0.0
                groups.append(
                    {"params": parameters, "weight_decay": decay, "factor": factor, "lr": config.lr}
                )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    # Not fused: on a CPU that kernel pairs weights and averages by their place in memory, and a checkpoint's are not
    # channels_last.
    return kind(groups, lr=config.lr)


def set_modes(model: DepthModel, config: TrainConfig, encoder_frozen: bool) -> None:
    """Puts a model into training mode, less what is frozen: the encoder with its BatchNorm, or all BatchNorm."""
    model.train()
    model.encoder.requires_grad_(not encoder_frozen)
    model.encoder.train(not encoder_frozen)
    if config.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def add_stochastic_depth(model: DepthModel, probability: float) -> int:
    """Let training leave out residual blocks of the encoder for single samples; how many blocks there are.

    Args:
        model: changed in place; its state dict stays as it is.
        probability: of the last block; it rises linearly from the first.
    """
    blocks = [
        module.block if isinstance(module, InvertedResidual) else module.bn3
        for module in model.encoder.modules()
        if isinstance(module, Bottleneck) or (isinstance(module, InvertedResidual) and module.use_res_connect)
    ]
    for number, block in enumerate(blocks if probability else (), start=1):
        drop = functools.partial(_drop_samples, probability=probability * number / len(blocks))
        block.register_forward_hook(drop)
    return len(blocks)


def _drop_samples(module: nn.Module, inputs: Any, output: Tensor, probability: float) -> Tensor:
    return stochastic_depth(output, probability, "row", module.training)


def dense_gradients(model: DepthModel) -> None:
    """Lets upsampling on a CPU go backward on dense gradients.

    What a concatenation hands back is a slice of channels_last memory, for which the kernel takes ten times as long.
    """

    def dense(module: nn.Module, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(gradient.contiguous(memory_format=torch.channels_last) for gradient in gradients)

    for module in model.modules():
        if isinstance(module, Upsample2x):
            module.register_full_backward_pre_hook(dense)  # type: ignore[arg-type]


def recompute_activations(model: DepthModel) -> int:
    """Makes the residual blocks and the convolution stacks forget their activations and compute them again in
    the backward pass; how many there are.

    BatchNorm then sees each batch twice, with the same statistics; its momentum is set so that two such steps move
    the running averages as far as one did.
    """

    def forgetful(function: Callable[..., Any]) -> Any:
        return functools.partial(checkpoint, function, use_reentrant=False)

    # A VGG encoder calls its layers stage by stage, the others' stacks are called themselves.
    stages = [m for m in model.modules() if isinstance(m, VGG16Encoder)]
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck | InvertedResidual)]
    inside = {id(child) for outer in (*stages, *blocks) for child in outer.modules()}
    for module in list(model.modules()):
        # The outermost stacks of layers that hold no block and lie in none.
        if isinstance(module, nn.Sequential) and not any(id(child) in inside for child in module.modules()):
            blocks.append(module)
            inside.update(id(child) for child in module.modules())
    for block in blocks:
        block.forward = forgetful(block.forward)
    for encoder in stages:
        encoder.stage = forgetful(encoder.stage)  # type: ignore[method-assign]
    for layer in (layer for outer in (*stages, *blocks) for layer in outer.modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum:
            layer.momentum = 1 - math.sqrt(1 - layer.momentum)
    return len(blocks) + sum(len(encoder.out_channels) for encoder in stages)
