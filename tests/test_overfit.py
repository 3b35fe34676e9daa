"""Every architecture can learn: architecture, loss, optimizer, BatchNorm statistics and evaluation work together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import depthzoo

# 4 frames that are both the train and the validation split, all of them in each batch.
RECIPE = """
model = "{model}"
size = [64, 96]
steps = {steps}
batch_size = 4
lr = {lr}
weight_decay = 0.0
warmup = 0.2
ema = 0.9
precision = "fp32"
validate_every = {steps}
checkpoint_every = {steps}
[model_options]
{options}
[loss]
silog = 1.0
"""
STEPS = 80
# Narrow U-Nets are fast on a CPU. The decoder of DispNet has no BatchNorm, hence the lower learning rate.
OPTIONS = {"unet": "width = 16", "unet_bilinear": "width = 16"}
RATES = {"dispnet_vgg16": 5e-4}
# The heavy model takes ten minutes, and is made of the parts of unet_resnet50 and unet.
MODELS = [name for name in depthzoo.list_models() if name != "unet_resnet50_heavy"]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Four rooms. The validation split is the train split."""
    out = tmp_path_factory.mktemp("overfit") / "rooms"
    words = ["-m", "train.prepare", "rooms", "--count", "6", "--size", "64x96", "--out", str(out)]
    subprocess.run([sys.executable, *words], cwd=root, check=True, capture_output=True)
    description = json.loads((out / "dataset.json").read_text())
    description["splits"]["val"] = description["splits"]["train"]
    (out / "dataset.json").write_text(json.dumps(description))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_model_overfits_four_frames(model: str, frames: Path, root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    rate, options = RATES.get(model, 2e-3), OPTIONS.get(model, "")
    recipe.write_text(RECIPE.format(model=model, steps=STEPS, lr=rate, options=options))
    words = ["-m", "train", "--recipe", str(recipe), "--data", str(frames), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *words, "--device", "cpu"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # A constant depth has an AbsRel above 0.2 on these rooms.
    assert metrics["history"][-1]["abs_rel"] < 0.1
