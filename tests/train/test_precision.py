"""Half precision is used where it is the faster one, and a run says so where it is not."""

from pathlib import Path

import pytest
import torch

from depthzoo.models import create_model
from train.config import TrainConfig, load_recipe
from train.engine import Run
from train.feed import Sources
from train.precision import usable_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "used"), [("DEFAULT", "fp32"), ("AVX2", "fp32"), ("AVX512", "bf16"), ("SVE256", "bf16")]
)
def test_on_a_cpu(capability: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert usable_precision("bf16", CPU) == used
    assert usable_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize(("capability", "used"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_on_a_gpu(capability: tuple[int, int], used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert usable_precision("bf16", CUDA) == used
    assert usable_precision("fp16", CUDA) == "fp16"


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_run_says_what_it_computes_in(
    capability: str,
    rooms_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    config = TrainConfig(size=(32, 32), steps=1, batch_size=2, precision="bf16")
    training = Run(config, Sources(rooms_set), tmp_path / "run")
    used = "fp32" if capability == "AVX2" else "bf16"
    assert training.learner.autocast()._enabled == (used == "bf16")
    training.train()
    printed = capsys.readouterr().err
    assert ("no fast bf16 on this CPU: computing in fp32\n" in printed) == (used == "fp32")
    card = create_model(config.model, weights=tmp_path / "run" / "last.safetensors").card
    assert card is not None and card["trained_on"]["precision"] == used
    # What was asked for stays what it was, so that the run goes on anywhere.
    assert load_recipe(tmp_path / "run" / "config.toml") == config
