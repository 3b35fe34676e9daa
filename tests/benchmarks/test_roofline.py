"""Counts and rates with known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import roofline
from benchmarks.roofline import Cost, Peak, count_cost, measure_peak, onnx_product
from train.arguments import command

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Every pixel attends to every pixel, with 3 channels in one head."""

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_cost_of_a_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()
    pixels = 16 * 20
    for batch in (1, 4):
        cost = count_cost(network, (16, 20), batch)
        assert cost.parameters == 3 * 8 * 9 + 8 + 16
        assert cost.gflop == pytest.approx(2 * batch * pixels * 3 * 8 * 9 / 1e9)
        # The image, the features, the weights and their bias; all that follows is fused.
        assert cost.elements == batch * pixels * (3 + 8) + 3 * 8 * 9 + 8


def test_cost_of_attention() -> None:
    cost = count_cost(Attention(), (4, 8), 2)
    # Two products of 32x3 by 3x32 and 32x32 by 32x3 per image.
    assert cost.gflop == pytest.approx(2 * 2 * (2 * 32 * 32 * 3) / 1e9)
    # Query, key, value and result; some kernels also return a logarithm per token.
    assert cost.elements - 2 * 4 * 32 * 3 in (0, 2 * 32)


def test_the_bound_is_the_longer_time() -> None:
    peak = Peak({"fp32": 200.0, "fp16": 400.0}, 10.0)
    assert peak.bound(Cost(0, 100, 0), "fp32") == pytest.approx(500)  # 100 GFLOP at 200 a second
    assert peak.bound(Cost(0, 1, 250_000_000), "fp32") == pytest.approx(100)  # 1 GB at 10 a second
    assert peak.bound(Cost(0, 1, 250_000_000), "fp16") == pytest.approx(50)
    assert peak.bound(Cost(0, 1, 1), "int8") is None


def test_rates_are_operations_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIDES", {"cpu": (100,)})
    monkeypatch.setattr(roofline, "COPY", {"cpu": 4000})
    monkeypatch.setattr(roofline, "median_seconds", lambda *_: 0.001)
    assert measure_peak(CPU).gflops == {"fp32": 2.0, "int8": 2.0}  # 2 * 100^3 in a millisecond
    monkeypatch.setattr(roofline, "median_seconds", lambda *_: 1e-6)
    assert measure_peak(CPU).gbytes == 8.0  # 4000 bytes read and written in a microsecond


def test_the_product_multiplies() -> None:
    a, b = np.random.default_rng(0).integers(0, 9, (2, 8, 8))
    for dtypes in ((np.float32, np.float32), (np.uint8, np.int8)):
        x, y = a.astype(dtypes[0]), b.astype(dtypes[1])
        (result,) = onnx_product(x, y)()  # type: ignore[misc]
        np.testing.assert_array_equal(result, a @ b)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roofline, "measure_peak", lambda _: Peak({"fp32": 100.0}, 10.0))
    words = ["--models", "unet_mobilenet_v3", "--size", "96x128", "--device", "cpu"]
    assert command(roofline.parser(), roofline.run, words) == 0
    out = capsys.readouterr().out
    assert "96x128, ms at least" in out and "3.5M parameters" in out
