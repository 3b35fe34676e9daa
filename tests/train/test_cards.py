"""Cards: what is stored beside weights, and when it is written again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo import weights as zoo_weights
from depthzoo.models import create_model
from depthzoo.predictor import Predictor
from train.arguments import command
from train.cards import (
    PICTURE,
    commit,
    is_stored,
    joined_terms,
    load_any,
    make_card,
    renew_card,
    store_weights,
    write_weights,
)
from train.evaluate import evaluate, parser, run, torch_predict
from train.shards import ShardDataset

KINECT = {"name": "Kinect v1", "focal_px": 518.86, "at_width": 640}
NYU = {"source": "nyu-labelled", "splits": {"test": {"size": [480, 640]}}}


def test_a_card_is_written_beside_the_weights(real_set: Path, weights_file: Path, tmp_path: Path) -> None:
    model = load_any(str(weights_file))
    results, _ = evaluate(
        torch_predict(model.eval(), torch.device("cpu")), ShardDataset(real_set, "val"), (64, 96)
    )
    report = {
        "count": 3,
        "truth": "filled",
        "protocol": "eigen",
        "depth_range": [0.001, 10.0],
        "plain": results,
        "flip": results,
        "sizes": {},
        "failures": {"worst": []},
    }
    model.card = (model.card or {}) | {"camera": KINECT, "depth_range": [0.001, 10.0], "unit": "m"}
    card = make_card(model, report, NYU | {"terms": "research use"})
    path = store_weights(model, card, tmp_path / "zoo", "nyu")
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["file"] == path.name and path.name.startswith("unet_mobilenet_v3_nyu-")
    assert stored["metrics"]["per_image"] == results["per_image"] and stored["terms"] == "of the train data"
    with Image.open(path.with_suffix(".desk.depth.png")) as output:
        metres = np.asarray(output) / 1000
    expected = Predictor(load_any(str(path)), device="cpu").predict(PICTURE).depth
    assert np.abs(metres - expected).max() < 1e-3
    # The commit of the training stays; weights that name none get today's.
    assert stored["commit"] == stored["evaluation_commit"] == commit()
    model.card["commit"] = "0123abc"
    assert make_card(model, report, NYU)["commit"] == "0123abc"
    # The test set's terms bind weights only where they say nothing themselves.
    model.card = {**model.card, "terms": ""}
    assert make_card(model, report, NYU | {"terms": "research use"})["terms"] == "research use"
    assert zoo_weights.read_metadata(path)["metrics"] == stored["metrics"]
    table = json.loads((tmp_path / "zoo" / "manifest.json").read_text())
    assert table["unet_mobilenet_v3"]["nyu"]["sha256"] == stored["sha256"]
    assert stored["failures"] == {"worst": []}
    assert stored["metrics"]["protocol"] == (
        "3 official test frames of NYU Depth V2, filled truth at 480x640, crop [45:471, 41:601], 0.001 < d < 10 m, "
        "no median scaling"
    )
    far = report | {"protocol": "full", "depth_range": [0.5, 80.0]}
    streets = {"source": "pairs", "splits": {"test": {"size": [94, 310]}}}
    assert make_card(model, far, streets)["metrics"]["protocol"] == (
        "3 test frames of pairs, filled truth at 94x310, whole frames, 0.5 < d < 80 m, no median scaling"
    )
    assert (
        any("518.86 pixels" in line for line in stored["limits"])
        and "of the train data" in stored["limits"][-1]
    )


def test_terms_are_said_once() -> None:
    nyu = "NYU: research use; cite it"
    pictures = f"{nyu}; pictures: free; depth by a teacher with these terms: {nyu}"
    once = (
        "NYU: research use; cite it; pictures: free; depth by a teacher with these terms: NYU: research use"
    )
    assert joined_terms(nyu, pictures) == joined_terms(pictures) == once
    assert joined_terms("", "MIT") == "MIT" and joined_terms("", "") == ""


def test_a_card_is_renewed_beside_weights_that_stay(
    real_set: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = zoo_weights.read_metadata(weights_file) | {
        "camera": KINECT,
        "depth_range": [0.001, 10.0],
        "unit": "m",
    }
    torch.manual_seed(0)
    write_weights(create_model("unet_mobilenet_v3", weights=None), weights_file, card)
    folder = tmp_path / "zoo"
    arguments = ["--data", str(real_set), "--card", str(folder)]
    assert command(parser(), run, [str(weights_file), *arguments]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    output = path.with_suffix(".desk.depth.png")
    output.write_bytes(b"stays too")
    before, first = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    without = {key: value for key, value in first.items() if key not in ("failures", "limits")}
    path.with_suffix(".json").write_text(json.dumps(without))
    assert command(parser(), run, [str(path), *arguments]) == 0
    assert output.read_bytes() == b"stays too"
    assert path.read_bytes() == before and len(list(folder.glob("*.safetensors"))) == 1
    assert json.loads(path.with_suffix(".json").read_text()) == first
    assert list(first["sizes"]) == ["192x256", "240x320", "480x640"]
    assert first["sizes"]["192x256"].keys() == {"abs_rel", "rmse", "d1"}
    bands = first["failures"]["by_distance"]
    assert sum(band["share"] for band in bands) == pytest.approx(1, abs=1e-3)
    assert [row["frame"] for row in first["failures"]["worst"]]

    # Figures that are not those of the header are no reason to change either.
    off = json.loads(json.dumps(first))
    off["metrics"]["per_image"]["d1"] += 0.01
    with pytest.raises(ValueError, match="d1 is .* the card stays"):
        renew_card(path, off)
    assert json.loads(path.with_suffix(".json").read_text()) == first


def test_a_run_or_another_tag_is_stored_anew(weights_file: Path) -> None:
    folder = weights_file.parent
    assert not is_stored(weights_file, folder, "nyu")  # a run's own file, not evaluated yet
    header = zoo_weights.read_metadata(weights_file)
    model = create_model("unet_mobilenet_v3", weights=None)
    write_weights(model, weights_file, header | {"metrics": {}})
    assert is_stored(weights_file, folder, "nyu")
    assert not is_stored(weights_file, folder, "mine") and not is_stored(weights_file, folder / "zoo", "nyu")
