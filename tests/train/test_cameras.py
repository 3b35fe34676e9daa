"""A data set like KITTI's, another camera and up to 80 m, from its files to an ONNX file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from depthzoo.prediction import Predictor
from train import __main__ as training
from train import evaluate
from train.arguments import command
from train.augment import Batch, geometry
from train.cards import limits, load_any
from train.config import AugmentConfig, load_recipe
from train.data import Sources, TrainData
from train.distributed import World
from train.order import Draws
from train.shards import ShardDataset

SIZE, FOCAL, FAR = (94, 310), 180.0, 80.0
STEP = 1 / 256  # metres
SPLITS = {"train": 6, "val": 2, "test": 2}
RECIPE = """
model = "unet_mobilenet_v3"
size = [32, 96]
steps = 4
batch_size = 2
precision = "fp32"
validate_every = 2
[loss]
silog = 1.0
"""


def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB, and uint16 steps of a road that runs from 4 m to 120 m, known at one pixel in twenty."""
    random = np.random.default_rng(seed)
    metres = np.broadcast_to(np.geomspace(120, 4, SIZE[0])[:, None], SIZE)
    steps = np.where(random.random(SIZE) < 0.05, np.rint(metres / STEP), 0).astype(np.uint16)
    image = (
        random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) // 4 + (metres * 1.5).astype(np.uint8)[..., None]
    )
    return image, steps


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders rgb and depth, and the data set that ``prepare`` makes of them."""
    from train.prepare import parser, run

    root = tmp_path_factory.mktemp("streets")
    for split, count in SPLITS.items():
        for number in range(count):
            image, steps = street(len(split) * 100 + number)
            for kind, pixels in (("rgb", image), ("depth", steps)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    arguments = ["pairs", root / "rgb", root / "depth", "--scale", STEP, "--focal", FOCAL, "--max-depth", FAR]
    arguments += ["--camera", "car", "--workers", 1, "--out", root / "set"]
    assert command(parser(), run, [str(argument) for argument in arguments]) == 0
    return root


def recipe(folder: Path) -> Path:
    path = folder / "streets.toml"
    path.write_text(RECIPE)
    return path


def stored(folder: Path, split: str) -> np.ndarray:
    """The depth of a split, (N, H, W) uint16."""
    return np.stack([depth for _, depth in ShardDataset(folder, split)])


def test_nothing_is_clamped(streets: Path, run_prepare: Callable[..., int]) -> None:
    source = np.stack([street(500 + number)[1] for number in range(SPLITS["train"])])
    assert (source > FAR / STEP).any()
    np.testing.assert_array_equal(stored(streets / "set", "train"), np.where(source > FAR / STEP, 0, source))
    info = ShardDataset(streets / "set", "train").info
    assert (info["depth_unit"], info["depth_range"], info["camera"]) == (STEP, [0.001, FAR], "car")
    assert info["outside_range"] == pytest.approx(np.log(120 / FAR) / np.log(120 / 4), abs=0.02)
    assert run_prepare("verify", streets / "set", "--full", "--workers", 1) == 0


def test_labels_are_those_of_the_canonical_camera(streets: Path, tmp_path: Path) -> None:
    config, device = load_recipe(recipe(tmp_path)), torch.device("cpu")
    data = TrainData(config, Sources(streets / "set"), tmp_path, device, World())
    data.open()
    _, depth, mask, _ = data.batch(0, (32, 96))
    metres = depth[mask].double().numpy() * depth_scale(FOCAL, SIZE[1])
    steps = np.rint(metres / STEP)
    np.testing.assert_allclose(metres, steps * STEP, rtol=1e-4)
    assert set(steps) <= set(np.unique(stored(streets / "set", "train")))
    assert metres.max() > 60 and 0 < mask.double().mean() < 0.1


def test_a_turned_camera_keeps_its_scale() -> None:
    frames = torch.zeros(1, 3, 64, 48, dtype=torch.uint8), torch.zeros(1, 1, 64, 48, dtype=torch.int16)
    batch = Batch(*frames, np.zeros((1, len(Draws._fields))), 2 * CANONICAL_FOCAL * 64, ["k"])
    _, divisor = geometry(batch, (64, 48), AugmentConfig())
    assert divisor.item() == pytest.approx(2)


@pytest.mark.slow
def test_from_pairs_to_onnx(streets: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from export.to_onnx import export_onnx

    data, out = str(streets / "set"), tmp_path / "run"
    arguments = ["--recipe", str(recipe(tmp_path)), "--data", data, "--out", str(out), "--device", "cpu"]
    assert command(training.parser(), training.run, [*arguments, "--no-report"]) == 0
    model = load_any(str(out))
    card = model.card
    assert card is not None
    assert card["camera"] == {"name": "car", "focal_px": FOCAL, "at_width": SIZE[1]}
    assert card["depth_range"] == [0.001, FAR]
    assert "outdoors" not in "".join(limits(card)) and "beyond 80 m" in "".join(limits(card))
    scale = depth_scale(FOCAL, SIZE[1])
    assert model.max_depth == pytest.approx(FAR / scale, rel=1e-4) and model.max_depth > FAR

    def figures(name: Path) -> dict:
        report = tmp_path / "report.json"
        given = [str(name), "--data", data, "--protocol", "full", "--device", "cpu", "--json", str(report)]
        assert command(evaluate.parser(), evaluate.run, given) == 0
        return json.loads(report.read_text())

    measured = figures(out)
    assert measured["count"] == SPLITS["test"] and measured["depth_range"] == [0.001, FAR]
    assert measured["failures"]["by_distance"][-1]["metres"] == [40, 80]

    # By another way: Predictor on the files.
    predict, errors = Predictor(model, "cpu"), []
    for number in range(SPLITS["test"]):
        truth = np.asarray(Image.open(streets / "depth" / "test" / f"{number}.png")) * STEP
        depth = predict(streets / "rgb" / "test" / f"{number}.png", FOCAL).depth
        counted = (truth > 0) & (truth < FAR)
        errors.append(np.mean(np.abs(depth.clip(0.001, FAR) - truth)[counted] / truth[counted]))
    assert measured["plain"]["per_image"]["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-4)
    history = json.loads((out / "metrics.json").read_text())["history"]
    assert len(history) == 2 and all(0 < row["abs_rel"] < 10 for row in history)

    export_onnx(model, tmp_path / "streets.onnx")
    assert figures(tmp_path / "streets.onnx")["plain"]["per_image"] == pytest.approx(
        measured["plain"]["per_image"], rel=1e-3, abs=1e-4
    )
