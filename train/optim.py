"""Learning rate, parameter groups, the moving average of the weights, and precision."""

import functools
import math
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from depthzoo.models import DepthModel
from train.config import TrainConfig
from train.distributed import World

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step, 0 <= step < total.

    "onecycle" rises from lr/25 to lr over ``warmup`` of the steps and falls to lr/10000, both as cosines (Smith and
    Topin, "Super-Convergence", 2018); "step" divides by ten after each third.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** min(2, 3 * step // total)
    rise = max(1, round(config.warmup * total))
    if step < rise:
        start, end, progress = config.lr / 25, config.lr, step / rise
    else:
        start, end, progress = config.lr, config.lr / 1e4, (step - rise) / max(1, total - rise)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: DepthModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimizer with four groups: encoder and the rest, each with and without weight decay (none on
    vectors). A group's "factor" multiplies the learning rate."""
    encoder = {id(p) for p in model.encoder.parameters()}
    groups: list[dict[str, Any]] = []
    for in_encoder in (True, False):
        for decayed in (True, False):
            parameters = [
                p for p in model.parameters() if (id(p) in encoder) == in_encoder and (p.ndim > 1) == decayed
            ]
            factor = config.encoder_lr if in_encoder else 1.0
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "factor": factor})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    # Not fused: on a CPU that kernel pairs weights and averages by their place in memory, and those of a checkpoint
    # are not channels_last.
    return kind(groups, lr=config.lr)


def make_average(model: DepthModel, decay: float) -> AveragedModel:
    """Create the exponential moving average of a model's weights.

    The decay is at most (1 + n) / (10 + n) after n updates: the average of a short run would otherwise be its first
    weights.
    """
    return AveragedModel(model, multi_avg_fn=functools.partial(_move_average, decay))


def _move_average(decay: float, averages: list[Tensor], values: list[Tensor], count: Any) -> None:
    get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averages, values, count)


def calibrate_batchnorm(average: AveragedModel, images: Iterable[Tensor], world: World) -> None:
    """Replace the BatchNorm statistics of averaged weights by the mean over some batches of all processes.

    The statistics of the trained model belong to other weights, and an average of them lags far behind.

    Args:
        average: the averaged model, left in evaluation mode.
        images: (N, 3, H, W) each, equally many in every process.
        world: the processes.
    """
    average.eval()
    update_bn(images, average)
    for layer in average.modules():
        if isinstance(layer, _BatchNorm):
            world.average(layer.running_mean)  # type: ignore[arg-type]
            world.average(layer.running_var)  # type: ignore[arg-type]


def usable_precision(precision: str, device: torch.device) -> str:
    """Return ``precision``, or "fp32" if half precision is slower on this device.

    A CPU without AVX-512 converts every value back and forth: a step of the U-Net takes 30 times as long in bfloat16 as
    in float32. CUDA devices before Ampere (compute capability 8.0) emulate bfloat16 too, but not float16.
    """
    if precision == "fp32":
        return precision
    if device.type == "cpu":
        # "DEFAULT" is any processor without vectorized kernels in PyTorch, such as Apple's.
        return "fp32" if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2") else precision
    if device.type == "cuda" and precision == "bf16":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return precision if capable else "fp32"
    return precision


def report_precision(wanted: str, used: str, device: torch.device) -> None:
    """Print a line on stderr if a run computes in another precision than its recipe's."""
    if used != wanted:
        hint = "; --precision fp16 is faster" if device.type == "cuda" else ""
        print(f"no fast {wanted} on this {device.type.upper()}: computing in {used}{hint}", file=sys.stderr)
