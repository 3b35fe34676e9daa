"""Several processes are one: the same global batch gives the same network, however its valid pixels are spread."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depthzoo.models import create_model
from train.checkpoint import load_checkpoint, same
from train.codec import encode_depth, encode_image
from train.config import AugmentConfig, TrainConfig, load_recipe
from train.distributed import World
from train.engine import Run, RunOptions
from train.feed import Feed, Sources
from train.progress import TrainingError
from train.shards import ShardDataset, ShardWriter, write_dataset

CPU = torch.device("cpu")
STEPS, BATCH = 20, 4
# Samples by their share of valid pixels; three in a batch of four may be empty.
VALID = (0.9, 0.0, 0.35, 0.7, 0.0, 0.15, 1.0, 0.0, 0.5, 0.05)
LOSSES = {
    "mse": "mse = 1.0",
    "berhu": "berhu = 1.0",
    "silog_batch": "silog = 1.0\n[loss_options.silog]\nbatch = true",
    "combined": "gradient = 1.0\nnormal = 1.0\nsilog = 1.0",
}
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
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten train frames of 48x64 with depth in a part of their columns, three of them with none at all."""
    out, rng = tmp_path_factory.mktemp("data") / "holes", np.random.default_rng(7)
    splits = {}
    for split, shares in (("train", VALID), ("val", (1.0, 0.5))):
        with ShardWriter(out, split) as writer:
            for number, share in enumerate(shares):
                ramp = np.linspace(1, 4, 64) * rng.uniform(0.5, 1.5) + rng.uniform(0, 0.2, (48, 64))
                depth = np.where(np.arange(64) < round(share * 64), ramp, 0)
                image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                writer.write(f"{split}-{number}", *encode_image(image), encode_depth(depth))
        splits[split] = {**writer.entry, "size": [48, 64], "focal_px": 51.886}
    write_dataset(out, splits, source="holes", terms="none")
    return out


@pytest.fixture(scope="session")
def train(holes: Path, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Train:
    """``python -m train`` on so many processes, with a loss by its name; the run's folder. Each is run once."""
    done: dict[tuple[object, ...], Path] = {}

    def launch(processes: int, loss: str, *flags: str, out: Path | None = None) -> Path:
        wanted = (processes, loss, flags, out)
        if wanted in done:
            return done[wanted]
        folder = tmp_path_factory.mktemp("runs")
        (folder / "recipe.toml").write_text(f"{RECIPE}[loss]\n{LOSSES[loss]}\n")
        run = out or folder / "run"
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "train", "--no-report"]
        given = ["--recipe", folder / "recipe.toml", "--data", holes, "--out", run, "--device", "cpu", *flags]
        result = subprocess.run(
            [*command, *map(str, given)],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
        done[wanted] = run
        return run

    return launch


@torch.inference_mode()
def predictions(state: dict[str, Tensor], data: Path) -> Tensor:
    """Metres for all train and validation pictures: (12, 1, 48, 64)."""
    model = create_model("unet_mobilenet_v3", weights=None).eval()
    model.load_state_dict(state)
    pictures = [ShardDataset(data, split)[i][0] for split, n in (("train", 10), ("val", 2)) for i in range(n)]
    images: Tensor = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    depth: Tensor = model(images)
    return depth


def test_the_ranks_share_what_one_process_would_take(holes: Path, tmp_path: Path) -> None:
    """And among the steps are some in which a rank has no valid pixel while another has."""
    config = TrainConfig(size=(48, 64), steps=STEPS, batch_size=BATCH)
    feeds = []
    for world in (World(), World(0, 2, 0), World(1, 2, 1)):
        feeds.append(Feed(config, Sources(holes), tmp_path, CPU, world))
        feeds[-1].open()
    lonely = 0
    for step in range(STEPS):
        (whole, depth, mask, keys), *parts = (feed.batch(step, config.size) for feed in feeds)
        assert [key for part in parts for key in part[3]] == keys
        assert torch.equal(torch.cat([part[0] for part in parts]), whole)
        assert torch.equal(torch.cat([part[1] for part in parts]), depth)
        valid = [int(part[2].sum()) for part in parts]
        assert sum(valid) == mask.sum() and valid[0] != valid[1]
        lonely += 0 in valid
    assert lonely >= 2 and config.augment == AugmentConfig()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_learn_what_one_does(loss: str, train: Train, holes: Path) -> None:
    one, two = (load_checkpoint(train(n, loss) / "checkpoint.safetensors") for n in (1, 2))
    assert one.state["step"] == two.state["step"] == STEPS
    torch.manual_seed(0)
    start = create_model("unet_mobilenet_v3", weights=None).state_dict()
    expected, depth = predictions(one.model, holes), predictions(two.model, holes)
    assert (expected - predictions(start, holes)).abs().max() > 0.1, "it has not learnt anything"
    assert (depth - expected).abs().max() < 1e-4
    history = [checkpoint.state["history"][-1] for checkpoint in (one, two)]
    assert history[1]["loss"] == pytest.approx(history[0]["loss"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_resume(train: Train, holes: Path, tmp_path: Path) -> None:
    straight = load_checkpoint(train(2, "mse") / "checkpoint.safetensors")
    out = tmp_path / "run"
    train(2, "mse", "--max-steps", "7", out=out)
    assert json.loads((out / "metrics.json").read_text())["step"] == 7
    train(2, "mse", "--resume", out=out)
    resumed = load_checkpoint(out / "checkpoint.safetensors")
    assert resumed.state["resumed_from"] == [7] and resumed.state["step"] == STEPS
    assert same(resumed.model, straight.model)
    # What was begun on two goes on on one.
    other = tmp_path / "other"
    train(2, "mse", "--max-steps", "7", out=other)
    train(1, "mse", "--resume", out=other)
    alone = load_checkpoint(other / "checkpoint.safetensors").model
    assert (predictions(alone, holes) - predictions(straight.model, holes)).abs().max() < 1e-4


@pytest.mark.slow
def test_one_process_writes_and_the_card_counts_both(train: Train) -> None:
    out = train(2, "mse")
    model = create_model("unet_mobilenet_v3", weights=out / "model.safetensors")
    assert model.card is not None
    about = {"device": "2 x CPU", "steps": STEPS, "images": STEPS * BATCH, "precision": "fp32"}
    assert model.card["trained_on"] == about
    assert load_recipe(out / "config.toml").batch_size == BATCH
    assert len(json.loads((out / "metrics.json").read_text())["history"]) == 1
    assert not list(out.glob("*.part*")) and not list(out.glob(".writable*"))


@pytest.mark.slow
def test_two_processes_calibrate_on_the_batches_of_both(train: Train) -> None:
    """Weights that stay as they are: the first layer sees the same pictures, however they are shared."""
    flags = ["--no-freeze-batchnorm", "--ema", "0.5", "--lr", "1e-30", "--max-steps", "4"]
    one, two = (load_checkpoint(train(n, "mse", *flags) / "checkpoint.safetensors").average for n in (1, 2))
    assert one is not None and two is not None
    layers = create_model("unet_mobilenet_v3", weights=None).named_modules()
    first = next(name for name, layer in layers if isinstance(layer, torch.nn.BatchNorm2d))
    key = f"module.{first}.running_mean"
    torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


# What cannot be.


@pytest.mark.parametrize(
    ("size", "settings", "says"),
    [
        (12, {"batch_size": 12}, "12 processes for 10 train frames"),
        (3, {}, "batch_size 4 gives 4 pictures a step, which 3 processes .* cannot share evenly"),
        (2, {"accumulate": 4}, "2 processes with accumulate = 4 cannot share evenly"),
        (1, {"sync_batchnorm": True}, "sync_batchnorm works on CUDA only; use freeze_batchnorm on the CPU"),
    ],
)
def test_worlds_that_cannot_be_are_one_line(
    holes: Path, tmp_path: Path, size: int, settings: dict[str, object], says: str
) -> None:
    config = TrainConfig(**{"size": (48, 64), "steps": 1, "batch_size": BATCH, **settings})  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=says) as caught:
        Run(config, Sources(holes), tmp_path / "run", RunOptions(world=World(0, size, 0)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# On GPUs.


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs a GPU")
def test_sync_batchnorm_on_one_gpu_is_batchnorm(holes: Path, tmp_path: Path) -> None:
    found = []
    for sync in (False, True):
        config = TrainConfig(
            size=(48, 64), steps=5, batch_size=BATCH, optimizer="sgd", precision="fp32", sync_batchnorm=sync
        )
        options = RunOptions(device=torch.device("cuda", 0), report=False, deterministic=True)
        run = Run(config, Sources(holes), tmp_path / str(sync), options)
        run.train()
        assert sync == any(isinstance(m, torch.nn.SyncBatchNorm) for m in run.learner.model.modules())
        found.append({key: value.cpu() for key, value in run.learner.model.state_dict().items()})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBatchNorm over two processes needs two GPUs")
def test_sync_batchnorm_on_two_gpus_has_the_statistics_of_one(
    holes: Path, root: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.replace("freeze_batchnorm = true", "sync_batchnorm = true").replace("0.03", "0.001")
    recipe.write_text(text + "[loss]\nmse = 1.0\n")
    states = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        given = ["--recipe", recipe, "--data", holes, "--out", out, "--device", "cuda", "--max-steps", 5]
        command = [sys.executable, *torchrun, "-m", "train", "--no-report", *map(str, given)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        states.append(load_checkpoint(out / "checkpoint.safetensors").model)
    for key, value in states[0].items():
        if "running" in key:
            torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=1e-3)
