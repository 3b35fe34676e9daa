"""What a network has to do for one call, counted without doing it: operations, and what goes through memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

# PyTorch before 2.15 has no formula for attention on a CPU; it is that of the same attention on a GPU.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
GPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention
FORMULAS = {CPU_ATTENTION: flop_registry[GPU_ATTENTION], **flop_registry}
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Cost:
    """Of one call with a batch of pictures.

    Attributes:
        parameters: of the network.
        gflop: 10^9 operations of the whole batch, a multiply-add as two, attention included.
        elements: what all convolutions and matrix products read and write: weights, inputs and outputs, each once.
            All between them (normalisation, activation, addition, resizing, concatenation) is taken to be part of a
            neighbour, as a good compiler makes it. A network that runs layer by layer moves no less.
    """

    parameters: int
    gflop: float
    elements: int

    def nbytes(self, precision: str) -> int:
        """Bytes that go through memory, with weights and features stored in ``precision``."""
        return self.elements * BYTES[precision]


class Traffic(TorchDispatchMode):
    """Adds up the elements of the tensors that operators with a FLOP formula take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in FORMULAS:
            tensors = tree_leaves((args, dict(kwargs or {}), result))
            self.elements += sum(each.numel() for each in tensors if isinstance(each, Tensor))
        return result


def count_cost(network: nn.Module, size: tuple[int, int], batch: int) -> Cost:
    """Counts one call on tensors without data, which takes no time at any size.

    Args:
        network: (N, 3, H, W) in, on the CPU and in eval mode.
        size: (H, W) of the input.
        batch: pictures.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    # Under no_grad, not inference_mode: composite operators come apart into those that have a formula.
    with torch.no_grad(), shapes, FlopCounterMode(display=False) as flops, Traffic() as traffic:
        flops.flop_registry = FORMULAS
        network(torch.empty(batch, 3, *size))
    parameters = sum(each.numel() for each in network.parameters())
    return Cost(parameters, flops.get_total_flops() / 1e9, traffic.elements)
