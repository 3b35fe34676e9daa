"""Cards: what is stored beside weights, when it is written again, and what it says against them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo import weights as zoo_weights
from depthzoo.errors import WeightsError
from depthzoo.metrics import METRICS, EvalProtocol
from depthzoo.prediction import Predictor
from train.arguments import command
from train.cards import (
    PICTURE,
    commit,
    failures,
    is_stored,
    join_terms,
    limits,
    load_any,
    make_card,
    publish,
    renew_card,
    save,
    store_weights,
    write_weights,
)
from train.evaluate import parser, run
from train.evaluation import ErrorByDistance

KINECT = {"name": "Kinect v1", "focal_px": 518.86, "at_width": 640}
NYU = {"source": "nyu-labelled", "splits": {"test": {"size": [480, 640]}}, "terms": "research use"}
MEANS = {"per_image": dict.fromkeys(METRICS, 0.25), "pooled": dict.fromkeys(METRICS, 0.5)}
REPORT: dict[str, Any] = {
    "count": 3,
    "truth": "filled",
    "protocol": "eigen",
    "depth_range": [0.001, 10.0],
    "plain": MEANS,
    "flip": MEANS,
    "sizes": {},
    "failures": {"worst": []},
}


@pytest.fixture
def trained(weights_file: Path) -> Path:
    """Weights as a run leaves them, with all that their card needs."""
    card = zoo_weights.read_metadata(weights_file)
    card |= {"camera": KINECT, "depth_range": [0.001, 10.0], "unit": "m", "parameters": 3_479_473}
    write_weights(load_any(str(weights_file)), weights_file, card)
    return weights_file


def test_weights_are_stored_with_their_card_and_an_output(trained: Path, tmp_path: Path) -> None:
    model = load_any(str(trained))
    path = store_weights(model, make_card(model, REPORT, NYU), tmp_path / "zoo", "mine")
    stored = json.loads(path.with_suffix(".json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == stored["file"] == f"unet_mine-{digest[:8]}.safetensors"
    assert (stored["sha256"], stored["bytes"], stored["tag"]) == (digest, path.stat().st_size, "mine")
    assert zoo_weights.read_metadata(path)["metrics"] == stored["metrics"]
    assert stored["metrics"]["per_image"] == MEANS["per_image"] and stored["terms"] == "of the train data"
    with Image.open(path.with_suffix(".desk.depth.png")) as output:
        metres = np.asarray(output) / 1000
    expected = Predictor(load_any(str(path)), device="cpu")(PICTURE).depth
    assert np.abs(metres - expected).max() < 1e-3
    assert stored["metrics"]["protocol"] == (
        "3 official test frames of NYU Depth V2, filled truth at 480x640, crop [45:471, 41:601], 0.001 < d < 10 m, "
        "no median scaling"
    )
    with pytest.raises(WeightsError, match="weights tag 'My tag'"):
        save(model, tmp_path, "My tag", {})


def test_a_card_has_commits_and_terms(trained: Path) -> None:
    model = load_any(str(trained))
    card = make_card(model, REPORT, NYU)
    assert card["commit"] == card["evaluation_commit"] == commit()
    # The commit of the training stays. The test set's terms apply only to weights that state none.
    assert model.card is not None
    model.card = {**model.card, "commit": "0123abc", "terms": ""}
    card = make_card(model, REPORT, NYU)
    assert card["commit"] == "0123abc" and card["terms"] == "research use"
    streets = {"source": "pairs", "splits": {"test": {"size": [94, 310]}}}
    far = make_card(model, REPORT | {"protocol": "full", "depth_range": [0.5, 80.0]}, streets)
    assert far["metrics"]["protocol"] == (
        "3 test frames of pairs, filled truth at 94x310, whole frames, 0.5 < d < 80 m, no median scaling"
    )


def test_a_manifest_lists_tags_default_first(trained: Path, tmp_path: Path) -> None:
    model, manifest, zoo = load_any(str(trained)), tmp_path / "manifest.json", tmp_path / "zoo"
    for tag, default in (("a", False), ("b", True), ("c", False), ("a", False)):
        path = save(model, zoo, tag, make_card(model, REPORT, NYU))
        written = publish(path, zoo_weights.read_metadata(path), manifest, default)
        assert written == path.with_suffix(".json")
    table = json.loads(manifest.read_text())["unet"]
    assert list(table) == ["b", "a", "c"]
    means = dict.fromkeys(("abs_rel", "rmse", "d1"), 0.25)
    about = {"parameters": 3_479_473, "size": [64, 96], "metrics": {"per_image": means}}
    assert {key: table["c"][key] for key in about} == about
    assert (zoo / table["c"]["file"]).stat().st_size == table["c"]["bytes"]


def test_terms_are_said_once() -> None:
    nyu = "NYU: research use; cite it"
    pictures = f"{nyu}; pictures: free; depth by a teacher with these terms: {nyu}"
    once = (
        "NYU: research use; cite it; pictures: free; depth by a teacher with these terms: NYU: research use"
    )
    assert join_terms(nyu, pictures) == join_terms(pictures) == once
    assert join_terms("", "MIT") == "MIT" and join_terms("", "") == ""


def test_a_card_is_renewed_beside_weights_that_stay(
    nyu_set: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "zoo"
    arguments = ["--data", str(nyu_set), "--card", str(folder)]
    assert command(parser(), run, [str(trained), *arguments]) == 0
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
    # Metrics that are not those of the header are no reason to change either.
    off = json.loads(json.dumps(first))
    off["metrics"]["per_image"]["d1"] += 0.01
    with pytest.raises(ValueError, match="d1 is .* the card stays"):
        renew_card(path, off)
    assert json.loads(path.with_suffix(".json").read_text()) == first


def test_a_run_or_another_tag_is_stored_anew(weights_file: Path) -> None:
    folder = weights_file.parent
    assert not is_stored(weights_file, folder, "nyu")  # a run's own file, not evaluated yet
    header = zoo_weights.read_metadata(weights_file)
    write_weights(load_any(str(weights_file)), weights_file, header | {"metrics": {}})
    assert is_stored(weights_file, folder, "nyu")
    assert not is_stored(weights_file, folder, "mine") and not is_stored(weights_file, folder / "zoo", "nyu")


def test_failures_name_the_worst_frames_and_none_without_valid_depth() -> None:
    rows = torch.zeros(12, len(METRICS), dtype=torch.float64)
    rows[:, METRICS.index("abs_rel")] = torch.arange(12.0) / 10
    rows[:, METRICS.index("d1")] = 0.25
    rows[3] = torch.nan
    by_distance = ErrorByDistance(EvalProtocol(crop=None))
    by_distance.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    found = failures(rows, [f"{i:04d}" for i in range(12)], by_distance)
    assert [row["frame"] for row in found["worst"]] == ["0011", "0010", "0009", "0008", "0007"]
    assert found["worst"][0] == {"frame": "0011", "abs_rel": 1.1, "rmse": 0.0, "d1": 0.25, "silog": 0.0}
    assert found["abs_rel"] == {"best_tenth": 0.1, "median": 0.6, "worst_tenth": 1.0}


OF_NYU, ROOMS, PAIRS = ({"source": source} for source in ("nyu-labelled", "rooms", "pairs"))


@pytest.mark.parametrize(
    ("seen", "indoors"),
    [
        ({"dataset": OF_NYU}, True),
        ({"dataset": OF_NYU, "mixed_with": [ROOMS], "initialised_from": {"dataset": ROOMS}}, True),
        ({"dataset": PAIRS}, False),
        ({"dataset": OF_NYU, "mixed_with": [{"source": "pseudo-labels"}]}, False),
        ({"dataset": OF_NYU, "initialised_from": {"dataset": PAIRS}}, False),
        ({"dataset": OF_NYU, "initialised_from": {"recipe": "of an older card"}}, False),
        ({}, False),
    ],
)
def test_limits_are_those_of_the_training(seen: dict[str, object], indoors: bool) -> None:
    camera = {"name": "Pinhole", "focal_px": 300, "at_width": 400}
    card = {"camera": camera, "depth_range": [0.1, 80.0], "unit": "m", "terms": "none"} | seen
    text = "\n".join(limits(card))
    assert "Pinhole: 300 pixels of focal length at 400 wide" in text and "beyond 80 m" in text
    assert text.endswith("training data: none") and ("outdoors" in text) == indoors
