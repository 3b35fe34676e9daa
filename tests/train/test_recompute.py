"""Activations that are computed again: the same gradients and statistics, less memory."""

import pytest
import torch
from torch import Tensor, nn

from depthzoo.models import create_model, list_models
from train.optimize import recompute_activations

QUICK = {"unet_mobilenet_v3", "dispnet_vgg16"}


def step(name: str, recompute: bool) -> tuple[nn.Module, int]:
    """A model after one backward pass, and the bytes that the forward pass kept for it."""
    torch.manual_seed(0)
    model = create_model(name, weights=None).train()
    if recompute:
        assert recompute_activations(model) > 4
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # dropout, where there is any
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        depth = model(image)
    depth.mean().backward()
    return model, sum(kept.values())


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in list_models()]
)
def test_recomputed_activations_change_nothing_but_memory(name: str) -> None:
    (plain, much), (forgetful, little) = step(name, False), step(name, True)
    for (key, a), b in zip(plain.named_parameters(), forgetful.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(plain.named_buffers(), forgetful.buffers(), strict=True):
        if "num_batches" not in key:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=key)
    assert little < 0.7 * much
