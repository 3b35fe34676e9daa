"""Counts and ceilings with known answers."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from benchmarks.architectures import RESULT
from benchmarks.measure import ceiling
from benchmarks.measure.ceiling import Ceiling, matrix_product, measure_ceiling
from benchmarks.measure.cost import count_cost
from depthzoo.models import create_model


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
        # The picture, the features, the weights and their bias; what follows is part of the convolution.
        assert cost.elements == batch * pixels * (3 + 8) + 3 * 8 * 9 + 8
    assert cost.nbytes("fp32") == cost.nbytes("tf32") == 4 * cost.elements
    assert (cost.nbytes("fp16"), cost.nbytes("int8")) == (2 * cost.elements, cost.elements)
    assert all(each.device.type == "cpu" for each in network.parameters())
    assert network(torch.zeros(1, 3, 16, 20)).shape == (1, 8, 16, 20)


def test_cost_of_attention() -> None:
    cost = count_cost(Attention(), (4, 8), 2)
    # Two products of 32x3 by 3x32 and 32x32 by 32x3 for each picture.
    assert cost.gflop == pytest.approx(2 * 2 * (2 * 32 * 32 * 3) / 1e9)
    # Query, key, value and result; some kernels also give a logarithm for each token.
    assert cost.elements - 2 * 4 * 32 * 3 in (0, 2 * 32)


def test_cost_is_the_recorded_one() -> None:
    known = json.loads(RESULT.read_text())["models"]["unet_mobilenet_v3"]
    cost = count_cost(create_model("unet_mobilenet_v3", weights=None).eval(), (480, 640), 1)
    assert (cost.parameters, round(cost.gflop, 2)) == (known["parameters"], known["gflop"])


def test_the_floor_is_the_longer_time() -> None:
    known = Ceiling({"fp32": 200.0}, 10.0, {"fp32": "torch"})
    assert known.floor(100, 1e9, "fp32") == pytest.approx(500)  # 100 GFLOP at 200 a second
    assert known.floor(1, 1e9, "fp32") == pytest.approx(100)  # 1 GB at 10 a second
    assert known.floor(100, 1e9, "fp16") is None
    assert known.facts() == {"gflops": {"fp32": 200.0}, "gbytes": 10.0, "library": {"fp32": "torch"}}


def test_the_ceiling_of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "SIDES", {"cpu": (64, 128)})
    monkeypatch.setattr(ceiling, "COPY", {"cpu": 2**20})
    asked: list[tuple[str, str]] = []
    products = ceiling.products

    def watched(device: torch.device, precision: str) -> object:
        for name, product in products(device, precision):
            asked.append((precision, name))
            yield name, product

    monkeypatch.setattr(ceiling, "products", watched)
    found = measure_ceiling(torch.device("cpu"), repeats=3)
    assert asked == [
        ("fp32", "torch"),
        ("fp32", "numpy"),
        ("fp32", "onnxruntime"),
        ("int8", "onnxruntime"),
    ]
    assert set(found.gflops) == {"fp32", "int8"} and min(found.gflops.values()) > 0 and found.gbytes > 0
    assert found.library["int8"] == "onnxruntime" and found.library["fp32"] in (
        "torch",
        "numpy",
        "onnxruntime",
    )


def test_rates_are_operations_over_the_quickest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "SIDES", {"cpu": (100,)})
    monkeypatch.setattr(ceiling, "COPY", {"cpu": 4000})
    monkeypatch.setattr(ceiling, "quickest", lambda *_: 0.001)
    found = measure_ceiling(torch.device("cpu"))
    assert found.gflops == {"fp32": 2.0, "int8": 2.0}  # 2 * 100^3 in a millisecond
    monkeypatch.setattr(ceiling, "quickest", lambda *_: 1e-6)
    assert measure_ceiling(torch.device("cpu")).gbytes == 8.0  # 4000 bytes read and written in a microsecond


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_graph_multiplies(kind: str) -> None:
    a, b = np.random.default_rng(0).integers(-9, 9, (2, 8, 8)).astype(kind)
    if kind == "int8":
        a = a.view(np.uint8)
    graph = matrix_product(a, b)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"a": a})
    np.testing.assert_array_equal(result, a.astype(np.int64) @ b.astype(np.int64))
