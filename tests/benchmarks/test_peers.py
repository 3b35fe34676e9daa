"""Peers are what they are published to be, and come without the network."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.measure import peers
from benchmarks.measure.cost import count_cost
from benchmarks.measure.peers import PEERS, PICTURE, Dense, build_peer

# Smallest inputs that are quick, with sides of each network's multiple.
SMALL = {"depth_anything_v2_small": (56, 70)}
# What others say of the published weights, in millions.
PUBLISHED = {
    "depth_anything_v2_small": 24.8,
    "glpn_nyu": 61.2,
    "dpt_swinv2_tiny": 41,
    "smp_unet_resnet50": 32.5,
}


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"the extra peers is not installed: no {package}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_what_it_is_published_to_be(name: str) -> None:
    needs(PEERS[name].package)
    network = build_peer(name)
    count = sum(each.numel() for each in network.parameters())
    assert count == PEERS[name].parameters and not network.training
    if name in PUBLISHED:
        assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.005)
    height, width = SMALL.get(name, (64, 96))
    assert PEERS[name].at((height, width)) == (height, width)
    with torch.inference_mode():
        result = network(torch.rand(2, 3, height, width))
    assert result.shape == (2, 1, height, width) and result.isfinite().all()


def test_torchvision_peers_are_the_published_ones_without_their_classes() -> None:
    from torchvision.models import segmentation

    published = {
        "deeplabv3_resnet50": segmentation.DeepLabV3_ResNet50_Weights.DEFAULT,
        "lraspp_mobilenet_v3_large": segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT,
    }
    auxiliary = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21
    classes = {
        "deeplabv3_resnet50": 20 * (256 + 1) + auxiliary,
        "lraspp_mobilenet_v3_large": 20 * (128 + 40 + 2),
    }
    for name, weights in published.items():
        assert PEERS[name].parameters + classes[name] == weights.meta["num_params"]
        transformed = weights.transforms()(torch.zeros(3, *PICTURE))
        assert transformed.shape[1:] == PEERS[name].native
    # Published as GFLOP of multiply-adds as one, with the auxiliary head and 21 classes at 520x520.
    flops = count_cost(build_peer("lraspp_mobilenet_v3_large"), (520, 520), 1).gflop / 2
    assert flops == pytest.approx(published["lraspp_mobilenet_v3_large"].meta["_ops"], rel=0.02)


def test_native_sizes_are_what_the_published_preprocessing_makes() -> None:
    needs("transformers")
    from transformers import DPTImageProcessor, GLPNImageProcessor

    picture = torch.zeros(3, *PICTURE, dtype=torch.uint8)
    processors = {
        "depth_anything_v2_small": DPTImageProcessor(
            size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14
        ),
        "dpt_swinv2_tiny": DPTImageProcessor(size={"height": 256, "width": 256}),
        "glpn_nyu": GLPNImageProcessor(size_divisor=32),
    }
    for name, processor in processors.items():
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        assert pixels.shape[2:] == PEERS[name].native == PEERS[name].at(None)


def test_sizes_become_multiples() -> None:
    assert PEERS["depth_anything_v2_small"].at((480, 640)) == (476, 644)
    assert PEERS["glpn_nyu"].at((240, 272)) == (256, 288)  # 7.5 and 8.5 times 32
    assert PEERS["deeplabv3_resnet50"].at((33, 47)) == (33, 47)
    assert PEERS["glpn_nyu"].at((1, 1)) == (32, 32)


def test_weights_are_random_but_always_the_same() -> None:
    first, second = (build_peer("lraspp_mobilenet_v3_large").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_dense_takes_the_map_out() -> None:
    class Wrapped(nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"other": image, "depth": image[:, 0]}

    image = torch.rand(2, 3, 4, 5)
    assert torch.equal(Dense(Wrapped(), "depth")(image), image[:, :1])
    assert torch.equal(Dense(nn.Identity())(image), image)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^transformers is not installed: pip install -e '.\[peers\]'$"
    ):
        build_peer("glpn_nyu")


OFFLINE = """
import socket
def refuse(*_, **__):
    raise AssertionError("it wants the network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.measure.peers import PEERS, build_peer
for name in PEERS:
    build_peer(name)
    print(name)
"""


@pytest.mark.slow
def test_nothing_is_downloaded(root: Path, tmp_path: Path) -> None:
    for peer in PEERS.values():
        needs(peer.package)
    home = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), "HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | home
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(root)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(PEERS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
