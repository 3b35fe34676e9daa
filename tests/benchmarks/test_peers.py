"""Peers are what their publishers say, and nothing is downloaded."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torchvision.models import segmentation

from benchmarks import peers
from benchmarks.peers import PEERS, Dense, build_peer, nearest
from benchmarks.roofline import count_cost

# Published, in millions, where the configuration above is not the source.
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
    height, width = (256, 256) if name == "dpt_swinv2_tiny" else nearest((64, 96), PEERS[name].multiple)
    with torch.inference_mode():
        result = network(torch.rand(2, 3, height, width))
    assert result.shape[:2] == (2, 1) and result.isfinite().all()


def test_torchvision_peers_are_the_published_ones_without_their_classes() -> None:
    published = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta
    assert PEERS["lraspp_mobilenet_v3_large"].parameters + 20 * (128 + 40 + 2) == published["num_params"]
    # Published with a multiply-add counted as one, and with 21 classes.
    gflop = count_cost(build_peer("lraspp_mobilenet_v3_large"), (520, 520)).gflop / 2
    assert gflop == pytest.approx(published["_ops"], rel=0.02)


def test_sizes_become_multiples() -> None:
    assert nearest((480, 640), 14) == (476, 644)
    assert nearest((240, 272), 32) == (256, 288)  # 7.5 and 8.5 times 32
    assert nearest((33, 47), 1) == (33, 47) and nearest((1, 1), 32) == (32, 32)


def test_weights_are_random_but_always_the_same() -> None:
    first, second = (build_peer("lraspp_mobilenet_v3_large").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_dense_returns_the_map() -> None:
    class Wrapped(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"other": image, "depth": image[:, 0]}

    image = torch.rand(2, 3, 4, 5)
    assert torch.equal(Dense(Wrapped(), "depth")(image), image[:, :1])
    assert torch.equal(Dense(torch.nn.Identity())(image), image)


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
from benchmarks.peers import PEERS, build_peer
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
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(PEERS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
