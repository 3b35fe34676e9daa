"""The project's recipes: that they are complete, say what they are, and run on real frames."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from depthzoo import weights
from depthzoo.losses import list_losses
from depthzoo.models import create_model, list_models
from train.__main__ import parser, run
from train.arguments import command
from train.config import AugmentConfig, TrainConfig, load_recipe
from train.model import build_model

FOLDER = Path(__file__).resolve().parents[2] / "train" / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
FRAMES_50K = 50_688
# Models whose encoder has ImageNet weights to start from.
PRETRAINED = ("dispnet_vgg16", "unet_mobilenet_v3", "unet_resnet50", "unet_resnet50_heavy")


def recipe(name: str) -> TrainConfig:
    return load_recipe(FOLDER / f"{name}.toml")


@pytest.mark.parametrize("path", [*RECIPES, *sorted(FOLDER.glob("base/*.toml"))], ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_is(path: Path) -> None:
    config = load_recipe(path)
    assert config.model in list_models() and set(config.loss) <= set(list_losses())
    comment = re.match(r"(# [^\n]+\n)+", path.read_text(encoding="utf-8"))
    assert comment is not None and len(comment.group()) > 60


@pytest.mark.parametrize("model", list_models())
def test_every_model_has_a_recipe_for_the_labelled_and_for_the_50k_set(model: str) -> None:
    labelled, large = recipe(model), recipe(f"{model}_50k")
    assert labelled.model == large.model == model
    assert labelled.head == large.head == "sigmoid" and labelled.augment.flip and large.augment.flip
    encoder = "imagenet" if model in PRETRAINED else "none"
    assert labelled.encoder_weights == large.encoder_weights == encoder
    assert large.steps == 0 and large.epochs * FRAMES_50K >= 500_000
    # Nothing beside --data is needed.
    assert all(config.mix == () and not config.init for config in (labelled, large))


def test_no_table_of_a_recipe_repeats_its_base() -> None:
    """A table replaces its base's; one that is equal to it would be a copy."""
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        if base := re.search(r'^base = "(.+)"$', text, re.M):
            below = load_recipe(path.parent / base.group(1))
            for table in re.findall(r"^\[(\w+)\]$", text, re.M):
                assert getattr(load_recipe(path), table) != getattr(below, table), f"{path.name} [{table}]"


def test_the_first_original_experiment() -> None:
    config = recipe("seed_unet_mse")
    assert (config.model, config.head, config.encoder_weights) == ("unet", "linear", "none")
    assert (config.epochs, config.steps, config.batch_size, config.frames) == (10, 0, 2, 40_000)
    assert config.loss == {"mse": 1.0} and config.augment == AugmentConfig()
    assert (config.optimizer, config.schedule, config.precision) == ("adam", "constant", "fp32")
    assert config.size == (480, 640) and config.tag == "nyu-mse"
    assert config.weight_decay == config.clip == config.ema == 0 and config.mix == ()


def test_the_other_original_experiments_and_the_improvements_on_them() -> None:
    first, second = recipe("seed_unet_mse"), recipe("seed_unet_combined")
    assert second.epochs == 1 and second.init.endswith("seed_unet_mse/model.safetensors")
    assert second.loss == {"mse": 1.0, "gradient": 1.0, "normal": 1.0} and second.tag == "nyu-combined"
    aside = {"init", "epochs", "loss", "tag", "validate_every"}
    assert {key for key, value in vars(second).items() if value != getattr(first, key)} == aside
    third = recipe("seed_unet_resnet50")
    assert (third.model, third.encoder_weights) == ("unet_resnet50_heavy", "imagenet")
    assert (third.epochs, third.batch_size, third.loss) == (10, 4, {"mse": 1.0})
    assert third.augment == AugmentConfig()
    berhu = recipe("unet_resnet50_berhu")
    assert (berhu.model, berhu.loss, berhu.tag) == ("unet_resnet50", {"berhu": 1.0}, "nyu-berhu")


@pytest.mark.parametrize("path", [p for p in RECIPES if "student" in p.stem], ids=lambda path: path.stem)
def test_a_student_learns_half_from_a_set_that_its_recipe_says_how_to_make(path: Path) -> None:
    assert load_recipe(path).mix == (0.5,)
    text = (FOLDER / "unet_resnet50_student.toml").read_text(encoding="utf-8").replace("\n# ", " ")
    assert "train.prepare pseudo IMAGES.tar ... --teacher unet_mobilenet_v3" in text and "--mix-data" in text


def test_the_readme_lists_every_recipe_with_the_images_it_sees() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.toml\) \|.*\| ([\d,]+) \|$", text, re.M)
    assert sorted(name for name, _, _ in rows) == [path.stem for path in RECIPES]
    for name, file, images in rows:
        config = recipe(file)
        seen = config.steps * config.batch_size or config.epochs * (config.frames or FRAMES_50K)
        assert name == file and int(images.replace(",", "")) == seen


# Where files are and how often they are written, not what was trained; and how a teacher's labels were given.
ASIDE = ("init", "encoder_weights", "validate_every", "checkpoint_every", "mix")
BUNDLED = [(name, tag) for name in list_models(pretrained=True) for tag in weights.tags(name)]


RENAMED = {
    "first_size": "warmup_size",
    "first_share": "warmup_size_fraction",
    "recompute": "checkpoint_activations",
}
GONE = ("frozen_encoder_epochs", "sync_batchnorm", "max_bad", "patience", "cutdepth")


@pytest.mark.parametrize(("name", "tag"), BUNDLED)
def test_bundled_weights_come_from_a_recipe_that_is_here(name: str, tag: str, tmp_path: Path) -> None:
    """A card holds the resolved recipe; keys that came later have their defaults, those that went are left out."""
    text = weights.card(name, tag)["recipe"].split("\n[teacher]")[0]
    text = re.sub(rf"^({'|'.join(GONE)}) = .*\n", "", text, flags=re.M)
    for old, new in RENAMED.items():
        text = text.replace(f"{old} = ", f"{new} = ")
    path = tmp_path / "card.toml"
    path.write_text(text, encoding="utf-8")
    defaults = {key: getattr(TrainConfig, key) for key in ASIDE}
    here = [dataclasses.replace(load_recipe(recipe), **defaults) for recipe in RECIPES]
    assert dataclasses.replace(load_recipe(path), **defaults) in here


# Short runs on real frames.


def train(name: str, out: Path, data: Path, *more: object) -> int:
    """Two steps of a recipe, as a user with little time would try it."""
    given = ["--recipe", FOLDER / f"{name}.toml", "--data", data, "--out", out, "--device", "cpu"]
    given += ["--max-steps", 2]
    small = ["--size", "64x64", "--batch-size", 4, "--encoder-weights", "none", "--no-report"]
    return command(parser(), run, [str(argument) for argument in (*given, *small, *more)])


@pytest.fixture(scope="module")
def seed_weights(real_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights of a short run of the first seed experiment."""
    out = tmp_path_factory.mktemp("seed") / "seed_unet_mse"
    assert train("seed_unet_mse", out, real_set) == 0
    yield out / "model.safetensors"
    shutil.rmtree(out)


def _kind(path: Path) -> tuple[object, ...]:
    """What makes a recipe's first steps differ from another's."""
    config = load_recipe(path)
    return config.model, config.head, config.init, config.mix, tuple(config.loss)


@pytest.mark.slow
@pytest.mark.parametrize("path", {_kind(path): path for path in RECIPES}.values(), ids=lambda path: path.stem)
def test_a_short_run_on_real_frames(
    path: Path, real_set: Path, rooms_set: Path, seed_weights: Path, tmp_path: Path
) -> None:
    config, out, more = load_recipe(path), tmp_path / "run", []
    if config.init:
        more += ["--init", seed_weights]
    if config.mix:
        more += ["--mix-data", rooms_set]
    try:
        assert train(path.stem, out, real_set, *more) == 0
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["step"] == 2 and metrics["skipped"] == 0
        assert all(math.isfinite(row[key]) for row in metrics["history"] for key in ("loss", "abs_rel"))
        resolved = load_recipe(out / "config.toml")
        assert (resolved.loss, resolved.size, resolved.sizes) == (config.loss, (64, 64), ())
        trained = create_model(config.model, weights=out / "last.safetensors")
        assert trained.card is not None and trained.card["tag"] == config.tag
        fresh = build_model(resolved).state_dict()
        with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
            # Not last.safetensors: float16 hides the small steps of a warm-up.
            names = [key for key, _ in trained.named_parameters()]
            assert not [key for key in names if torch.equal(file.get_tensor(f"model/{key}"), fresh[key])]
    finally:
        shutil.rmtree(out, ignore_errors=True)
