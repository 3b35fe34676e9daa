"""The network that a run trains, and what training changes in it without changing its state dict."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck
from torchvision.ops import stochastic_depth

from depthzoo.camera import depth_scale
from depthzoo.models import DepthModel, create_model
from depthzoo.models.dispnet import VGG16Encoder
from depthzoo.models.layers import Upsample2x
from depthzoo.weights import load_into, read_metadata
from train.cards import find_any
from train.config import TrainConfig
from train.shards import DEFAULT_RANGE, depth_facts


def build_model(config: TrainConfig, info: dict[str, Any] | None = None) -> DepthModel:
    """Build a new model, with the weights of ``init`` or ``encoder_weights`` if given.

    If the weights of ``init`` are for another range or kind of head, the head is a new one.

    Args:
        config: of the run.
        info: the content of the data set's ``dataset.json``, whose depth range the head takes unless
            ``model_options`` states one.

    Raises:
        ValueError: an option that the model does not have, or weights that cannot be loaded.
    """
    torch.manual_seed(config.seed)
    # ``init`` replaces the encoder's weights too.
    encoder = None if config.init or config.encoder_weights == "none" else config.encoder_weights
    bounds = head_bounds(info) if info and "max_depth" not in config.model_options else {}
    options = {"head": config.head} | bounds | config.model_options
    try:
        model = create_model(config.model, weights=None, encoder_weights=encoder, **options)
    except TypeError as error:
        raise ValueError(f"model_options of {config.model}: {error}") from None
    if config.init:
        path = find_any(config.init)
        load_into(model, path)
        trained = read_metadata(path).get("arguments")
        if trained is not None and head_of(trained) != head_of(model.arguments):
            model.reset_head()  # the weights of a head mean nothing in another range
    return model


def head_of(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Return activation and range of the head that a builder makes with these arguments."""
    defaults = {"head": "sigmoid", "min_depth": DEFAULT_RANGE[0], "max_depth": DEFAULT_RANGE[1]}
    return tuple((defaults | arguments)[key] for key in defaults)


def head_bounds(info: dict[str, Any]) -> dict[str, float]:
    """Return options of the head for a data set's depth range, canonical metres; none if the defaults fit."""
    (_, stated), train = depth_facts(info), info["splits"]["train"]
    far = round(stated[1] / depth_scale(train["focal_px"], max(train["size"])), 3)
    if stated == DEFAULT_RANGE and far <= DEFAULT_RANGE[1]:
        return {}
    # A new head starts at a quarter of its range, as for NYU Depth V2.
    return {"max_depth": far, "mean_depth": round(far / 4, 3)}


def depth_range(model: DepthModel) -> tuple[float, float]:
    """Return the canonical metres that a model can predict."""
    return (model.min_depth, model.max_depth) if model.head.activation == "sigmoid" else (0.0, math.inf)


def set_train_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Put a model into training mode, except for BatchNorm if it is frozen."""
    model.train()
    for module in model.modules():
        if freeze_batchnorm and isinstance(module, _BatchNorm):
            module.eval()


def add_stochastic_depth(model: DepthModel, probability: float) -> int:
    """Skip residual blocks of the encoder for random samples during training; return the number of blocks.

    ``probability`` is that of the last block; it rises linearly from the first.
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


def make_gradients_dense(model: nn.Module) -> None:
    """Make the gradients of upsampling layers dense, for training on a CPU.

    The gradient of a concatenation is a slice of channels_last memory, for which the kernel takes ten times as long.
    """

    def dense(module: nn.Module, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(gradient.contiguous(memory_format=torch.channels_last) for gradient in gradients)

    for module in model.modules():
        if isinstance(module, Upsample2x):
            module.register_full_backward_pre_hook(dense)  # type: ignore[arg-type]


def checkpoint_activations(model: nn.Module) -> int:
    """Compute the activations of residual blocks and convolution stacks again in the backward pass.

    BatchNorm then sees each batch twice, with the same statistics; its momentum is set so that two such updates move
    the running averages as far as one did. Returns the number of blocks.
    """

    def recomputed(function: Any) -> Any:
        return functools.partial(checkpoint, function, use_reentrant=False)

    # A VGG encoder calls its layers stage by stage; the stacks of the others are called themselves.
    stages = [m for m in model.modules() if isinstance(m, VGG16Encoder)]
    blocks: list[nn.Module] = [m for m in model.modules() if isinstance(m, Bottleneck | InvertedResidual)]
    inside = {id(child) for outer in (*stages, *blocks) for child in outer.modules()}
    for module in list(model.modules()):
        # The outermost stacks that neither hold a block nor are part of one.
        if isinstance(module, nn.Sequential) and not any(id(child) in inside for child in module.modules()):
            blocks.append(module)
            inside.update(id(child) for child in module.modules())
    for block in blocks:
        block.forward = recomputed(block.forward)  # type: ignore[method-assign]
    for encoder in stages:
        encoder.stage = recomputed(encoder.stage)  # type: ignore[method-assign]
    for layer in (layer for outer in (*stages, *blocks) for layer in outer.modules()):
        if isinstance(layer, _BatchNorm) and layer.momentum:
            layer.momentum = 1 - math.sqrt(1 - layer.momentum)
    return len(blocks) + sum(len(encoder.out_channels) for encoder in stages)
