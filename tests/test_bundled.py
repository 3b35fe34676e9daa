"""The weights in the repository: each file against its card and its stored output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import depthzoo
from depthzoo import weights
from depthzoo.files import sha256_of
from depthzoo.metrics import DepthMetrics
from depthzoo.models import list_models
from export.run_onnx import OnnxDepth
from export.to_onnx import export_onnx
from train.cards import PICTURE
from train.rooms import render

METRES_PER_STEP = 9.9955 / 255
TOLERANCE = 1e-3  # metres: half a millimetre is lost by storing it
TAGS = [(name, tag) for name in list_models(pretrained=True) for tag in weights.tags(name)]


def truth(path: Path) -> torch.Tensor:
    """Metres of the 8-bit copy."""
    return torch.from_numpy((np.asarray(Image.open(path)).astype(np.float32) + 0.5) * METRES_PER_STEP)


def test_the_models_to_begin_with_have_weights() -> None:
    assert {"unet_mobilenet_v3", "unet_resnet50"} <= set(list_models(pretrained=True))


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_a_file_is_what_its_card_says(name: str, tag: str, root: Path) -> None:
    card = weights.card(name, tag)
    path = root / "weights" / card["file"]
    assert json.loads(path.with_suffix(".json").read_text()) == card
    assert sha256_of(path) == card["sha256"] and path.stat().st_size == card["bytes"] < 70e6
    model = depthzoo.create_model(name, weights=tag)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert not model.training and model.card is not None
    # A card may have been renewed since, with what the file's own header does not say.
    header, added = model.card, {"failures", "limits"}
    optional = {"file", "sha256", "bytes", "sizes", "evaluation_commit"}
    assert header.items() <= card.items() and set(card) - set(header) <= optional | added
    wanted = {
        "dataset",
        "recipe",
        "depth_range",
        "unit",
        "camera",
        "metrics",
        "terms",
        "commit",
        "trained_on",
    }
    assert wanted <= set(header) and added <= set(card)
    assert len(card["failures"]["worst"]) == 5
    limits = "\n".join(card["limits"])
    assert f"beyond {card['depth_range'][1]:g} m" in limits
    assert card["camera"]["name"] in limits and card["terms"] in limits
    # Nothing of the machine that trained it.
    assert "/" not in header["recipe"].replace("[H, W]", "")


def test_the_repository_stays_small(root: Path) -> None:
    assert sum(path.stat().st_size for path in (root / "weights").iterdir()) < 150e6


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_torch_hub_gives_plausible_metres_on_real_frames(
    name: str, tag: str, root: Path, nyu_frames: list[tuple[Path, Path]]
) -> None:
    model = torch.hub.load(str(root), name, source="local", weights=tag, trust_repo=True)
    metrics = DepthMetrics()
    for picture, depth in nyu_frames:
        prediction = depthzoo.Predictor(model, device="cpu")(picture)
        assert prediction.depth.shape == (480, 640) and prediction.depth.dtype == np.float32
        metrics.update(torch.from_numpy(prediction.depth)[None], truth(depth)[None])
    # The best constant has .48 on the whole test set.
    assert metrics.compute()["per_image"]["abs_rel"] < 0.35


def stored_output(name: str, tag: str, root: Path) -> np.ndarray:
    """Metres that these weights made of the bundled picture when they were stored."""
    path = root / "weights" / weights.card(name, tag)["file"]
    return np.asarray(Image.open(path.with_suffix(f".{PICTURE.stem}.depth.png"))) / 1000


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_the_stored_output_is_reproduced(name: str, tag: str, root: Path) -> None:
    depth = depthzoo.Predictor(depthzoo.create_model(name, weights=tag), device="cpu")(PICTURE).depth
    assert np.abs(depth - stored_output(name, tag, root)).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_an_onnx_file_reproduces_it(name: str, tag: str, root: Path, tmp_path: Path) -> None:
    export_onnx(depthzoo.create_model(name, weights=tag), tmp_path / "model.onnx")
    with Image.open(PICTURE) as picture:
        depth = OnnxDepth(tmp_path / "model.onnx").predict(picture)
    assert np.abs(depth - stored_output(name, tag, root)).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_a_card_is_reproduced(name: str, tag: str, real_data: Path) -> None:
    """All 654 frames, by another way than train.evaluate: the Predictor on the files themselves."""
    folder = real_data / "nyu_v2_labelled"
    predictor = depthzoo.Predictor(depthzoo.create_model(name, weights=tag), device="cpu")
    metrics = DepthMetrics()
    for number in json.loads((folder / "splits.json").read_text())["test"]:
        depth = predictor(folder / "images" / f"{number:04d}.jpg").depth
        metrics.update(torch.from_numpy(depth)[None], truth(folder / "depths" / f"{number:04d}.png")[None])
    figures, card = metrics.compute(), weights.card(name, tag)["metrics"]
    assert figures["per_image"] == pytest.approx(card["per_image"], abs=2e-3)
    assert figures["pooled"]["rmse"] == pytest.approx(card["pooled"]["rmse"], abs=2e-3)
    assert figures["per_image"]["abs_rel"] <= 0.25


@pytest.mark.parametrize(("name", "seed"), [("desk", 3), ("kitchen", 17), ("office", 10)])
def test_bundled_pictures_come_from_the_renderer(name: str, seed: int) -> None:
    folder, room = Path(depthzoo.__file__).parent / "examples", render(seed)
    far = np.abs(np.asarray(Image.open(folder / f"{name}.depth.png")) / 1000 - room.depth)
    # A ray that grazes an edge hits the near or the far side as the processor rounds; all others agree.
    assert np.median(far) < 1e-3 and (far > 2e-3).mean() < 1e-3
    apart = np.abs(np.asarray(Image.open(folder / f"{name}.jpg")).astype(int) - room.image).max(axis=-1)
    assert (apart > 24).mean() < 1e-3  # grey levels, more than JPEG changes
