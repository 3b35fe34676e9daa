"""Several processes are one: the same global batch gives the same network, however its valid pixels are spread."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depthzoo.models import create_model
from depthzoo.weights import read_metadata
from train.checkpoint import load_checkpoint, same
from train.codec import encode_depth, encode_image
from train.shards import ShardDataset, ShardWriter, write_dataset

pytestmark = pytest.mark.slow
STEPS, BATCH = 16, 4
# Train frames by their fraction of valid pixels; three in a batch of four may be empty.
VALID = (0.9, 0.0, 0.35, 0.7, 0.0, 0.15, 1.0, 0.0, 0.5, 0.05)
# Each reduces over the global batch in a way of its own.
LOSS = """
[loss]
mse = 1.0
berhu = 1.0
gradient = 1.0
normal = 1.0
silog = 1.0
[loss_options.silog]
batch = true
"""
RECIPE = f"""
model = "unet_mobilenet_v3"
size = [48, 64]
steps = {STEPS}
batch_size = {BATCH}
optimizer = "sgd"
schedule = "constant"
lr = 0.03
freeze_batchnorm = true
precision = "fp32"
validate_every = {STEPS}
checkpoint_every = {STEPS}
"""
Launch = Callable[..., Path]


@pytest.fixture(scope="session")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten train frames of 48x64 with depth in a part of their columns, three of them with none at all."""
    out, rng = tmp_path_factory.mktemp("data") / "holes", np.random.default_rng(7)
    splits = {}
    for split, fractions in (("train", VALID), ("val", (1.0, 0.5))):
        with ShardWriter(out, split) as writer:
            for number, fraction in enumerate(fractions):
                ramp = np.linspace(1, 4, 64) * rng.uniform(0.5, 1.5) + rng.uniform(0, 0.2, (48, 64))
                depth = np.where(np.arange(64) < round(fraction * 64), ramp, 0)
                image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                writer.write(f"{split}-{number}", *encode_image(image), encode_depth(depth))
        splits[split] = {**writer.entry, "size": [48, 64], "focal_px": 51.886}
    write_dataset(out, splits, source="holes", terms="none")
    return out


@pytest.fixture(scope="session")
def launch(holes: Path, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Launch:
    """``python -m train`` in so many processes; the run's folder."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    recipe.write_text(RECIPE + LOSS)

    def start(processes: int, *flags: str, out: Path | None = None) -> Path:
        run = out or tmp_path_factory.mktemp("runs") / "run"
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "train", "--no-report"]
        given = ["--recipe", recipe, "--data", holes, "--out", run, "--device", "cpu", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [*command, *map(str, given)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
        return run

    return start


@pytest.fixture(scope="session")
def two(launch: Launch) -> Path:
    """A finished run of two processes."""
    return launch(2)


@torch.inference_mode()
def predictions(state: dict[str, Tensor], data: Path) -> Tensor:
    """Metres for all train images: (10, 1, 48, 64)."""
    model = create_model("unet_mobilenet_v3", weights=None).eval()
    model.load_state_dict(state)
    images = torch.from_numpy(np.stack([image for image, _ in ShardDataset(data, "train")]))
    depth: Tensor = model(images.permute(0, 3, 1, 2).float() / 255)
    return depth


def test_two_processes_learn_what_one_does(launch: Launch, two: Path, holes: Path) -> None:
    one, both = (load_checkpoint(run / "checkpoint.safetensors") for run in (launch(1), two))
    assert one.state["step"] == both.state["step"] == STEPS
    torch.manual_seed(0)
    start = create_model("unet_mobilenet_v3", weights=None).state_dict()
    expected, depth = predictions(one.model, holes), predictions(both.model, holes)
    assert (expected - predictions(start, holes)).abs().max() > 0.1, "it has not learnt anything"
    assert (depth - expected).abs().max() < 1e-3
    history = [checkpoint.state["history"][-1] for checkpoint in (one, both)]
    assert history[1]["loss"] == pytest.approx(history[0]["loss"], rel=1e-4)


def test_two_processes_resume(launch: Launch, two: Path, holes: Path, tmp_path: Path) -> None:
    """And what two processes began one can finish."""
    straight = load_checkpoint(two / "checkpoint.safetensors")
    begun = launch(2, "--max-steps", "7")
    for processes in (2, 1):
        out = Path(shutil.copytree(begun, tmp_path / str(processes)))
        launch(processes, "--resume", out=out)
        resumed = load_checkpoint(out / "checkpoint.safetensors")
        assert resumed.state["resumed_from"] == [7] and resumed.state["step"] == STEPS
        if processes == 2:
            assert same(resumed.model, straight.model)
        assert (predictions(resumed.model, holes) - predictions(straight.model, holes)).abs().max() < 1e-3


def test_one_process_writes_and_the_card_counts_both(two: Path) -> None:
    about = {"device": "2 x CPU", "steps": STEPS, "images": STEPS * BATCH, "precision": "fp32"}
    assert read_metadata(two / "model.safetensors")["trained_on"] == about
    assert len(json.loads((two / "metrics.json").read_text())["history"]) == 1
    assert not list(two.glob(".*"))


def test_two_processes_calibrate_on_the_batches_of_both(launch: Launch) -> None:
    """Weights that stay as they are: the first layer sees the same images, however they are shared."""
    flags = ["--no-freeze-batchnorm", "--ema", "0.5", "--lr", "1e-30", "--max-steps", "4"]
    one, two = (load_checkpoint(launch(n, *flags) / "checkpoint.safetensors").average for n in (1, 2))
    assert one is not None and two is not None
    layers = create_model("unet_mobilenet_v3", weights=None).named_modules()
    first = next(name for name, layer in layers if isinstance(layer, torch.nn.BatchNorm2d))
    key = f"module.{first}.running_mean"
    torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)
