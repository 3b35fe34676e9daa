"""Which trained weights the zoo is to have, by which recipe, and which of them are still owed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthzoo import weights as zoo_weights
from train.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "train" / "recipes"
# What a recipe made for the 50K set sees on a smaller one, which is what recipes for the labelled set see.
IMAGES = 160_000


@dataclass(frozen=True)
class Wanted:
    """Weights that the zoo is to have.

    Attributes:
        model: of the zoo.
        tag: of the weights.
        recipe: its file's name in train/recipes, without ending.
        after: tag of the same model's weights that it starts from, or "".
        student: recipe by which it then learns from what it says of pictures without depth, where there are any, or "".
    """

    model: str
    tag: str
    recipe: str
    after: str = ""
    student: str = ""

    @property
    def name(self) -> str:
        """Of its run and its stages."""
        return f"{self.model}-{self.tag}"


# In the order in which they are wanted.
WANTED = (
    Wanted("unet_resnet50", "nyu", "unet_resnet50", student="unet_resnet50_student"),
    Wanted("unet_mobilenet_v3", "nyu", "unet_mobilenet_v3", student="unet_mobilenet_v3_student"),
    Wanted("unet", "nyu-mse", "seed_unet_mse"),
    Wanted("unet", "nyu-combined", "seed_unet_combined", after="nyu-mse"),
    Wanted("dispnet_vgg16", "nyu", "dispnet_vgg16"),
    Wanted("unet_bilinear", "nyu", "unet_bilinear"),
    Wanted("unet_resnet50_heavy", "nyu", "unet_resnet50_heavy"),
)


def cards(manifests: Iterable[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The cards of tables of weights, by model and tag; a later table wins, one that is not there has none."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in manifests:
        if path.is_file():
            folder = zoo_weights.BUNDLED if path == zoo_weights.MANIFEST else path.parent
            for model, entries in json.loads(path.read_text(encoding="utf-8")).items():
                for tag, entry in entries.items():
                    card = (folder / entry["file"]).with_suffix(".json")
                    found[model, tag] = json.loads(card.read_text(encoding="utf-8"))
    return found


def owed(manifests: Iterable[Path], wanted: Iterable[Wanted] = WANTED) -> dict[Wanted, str]:
    """The weights without a card, or whose card says that they were trained on a CPU, with the reason."""
    known = cards(manifests)
    found = {}
    for one in wanted:
        card = known.get((one.model, one.tag))
        if card is None:
            found[one] = "no card"
        elif card["trained_on"]["device"] == "CPU":
            found[one] = "trained on a CPU"
    return found


def length(one: Wanted, frames: int) -> list[str]:
    """Flags that fit a recipe which counts in frames of the 50K set to a data set with fewer.

    The first stage of such a recipe then sees ``IMAGES`` images; one of another length, in proportion.
    """
    recipe = load_recipe(RECIPES / f"{one.recipe}.toml")
    if not recipe.frames or frames >= recipe.frames:
        return []
    whole = recipe if not one.after else load_recipe(RECIPES / f"{first(one).recipe}.toml")
    epochs = max(1, round(IMAGES * recipe.epochs / whole.epochs / frames))
    steps = epochs * frames // recipe.batch_size
    return ["--frames", "0", "--epochs", str(epochs), "--validate-every", str(max(1, steps // 20))]


def first(one: Wanted) -> Wanted:
    """The weights that others start from."""
    return next(other for other in WANTED if (other.model, other.tag) == (one.model, one.after))
