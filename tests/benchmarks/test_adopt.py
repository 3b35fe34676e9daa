"""What gpu.sh left elsewhere, taken home."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import depthzoo
from benchmarks import adopt
from benchmarks.stages.journal import JOURNAL
from depthzoo import weights
from train.arguments import command
from train.cards import publish, save


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and a zoo with weights of a CPU."""
    for name in ("results", "weights"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(adopt, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(weights, "BUNDLED", tmp_path / "weights")
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    store_weights(tmp_path / "weights", tmp_path / "manifest.json", "CPU")
    return tmp_path


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """What a GPU left."""
    folder = tmp_path / "away"
    (folder / "weights").mkdir(parents=True)
    store_weights(folder / "weights", folder / "weights" / "manifest.json", "Voodoo 2")
    store_runs(folder / "latency.cuda.json", made_run("Voodoo 2", 5.0))
    (folder / JOURNAL).write_text(json.dumps({"stages": {"Voodoo 2": {"tests": {"seconds": 9}}}}))
    return folder


def store_weights(folder: Path, manifest: Path, device: str) -> None:
    model = depthzoo.create_model("unet_mobilenet_v3", weights=None)
    card = {"model": "unet_mobilenet_v3", "tag": "nyu", "trained_on": {"device": device}}
    card |= {"metrics": {"per_image": {"abs_rel": 0.15}}}
    publish(save(model, folder, "nyu", card), card, folder, manifest, default=True)


def made_run(gpu: str, median: float) -> dict[str, Any]:
    settings = {"size": [480, 640], "batch": 1}
    machine = {"device": "cuda", "gpu": gpu, "processor": "Z80", "threads": 2}
    return {"machine": machine, **settings, "rows": [{"median": median}]}


def store_runs(path: Path, *runs: dict[str, Any]) -> None:
    path.write_text(json.dumps({"runs": runs}))


def test_results_weights_and_what_is_done_come_home(
    home: Path, away: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_runs(home / "results" / "latency.cuda.json", made_run("Voodoo 2", 9.0), made_run("Voodoo 3", 1.0))
    old = weights.card("unet_mobilenet_v3")["file"]
    assert command(adopt.parser(), adopt.run, [str(away)]) == 0
    runs = json.loads((home / "results" / "latency.cuda.json").read_text())["runs"]
    assert {run["machine"]["gpu"]: run["rows"][0]["median"] for run in runs} == {
        "Voodoo 2": 5.0,
        "Voodoo 3": 1.0,
    }
    assert json.loads((home / "results" / JOURNAL).read_text()) == {
        "stages": {"Voodoo 2": {"tests": {"seconds": 9}}}
    }
    card = weights.card("unet_mobilenet_v3")
    assert card["trained_on"]["device"] == "Voodoo 2" and card["file"] != old
    assert weights.find("unet_mobilenet_v3", "DEFAULT") == home / "weights" / card["file"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "latency.cuda.json: 1 runs",
        f"{card['file']}: AbsRel 0.150",
        f"{old} is no longer in the zoo's table: remove it and what has its name from weights/",
        "stages.json: 1 stages",
    ]
    output = weights.BUNDLED / card["file"].replace(".safetensors", ".desk.depth.png")
    with Image.open(output) as picture:
        assert picture.size == (640, 480)


def test_the_picture_of_the_reproduction_comes_too(home: Path, away: Path) -> None:
    store_runs(away / "reproduction.cuda.json", made_run("Voodoo 2", 5.0))
    (away / "reproduction.cuda.png").write_bytes(b"a picture")
    assert command(adopt.parser(), adopt.run, [str(away)]) == 0
    assert (home / "results" / "reproduction.cuda.png").read_bytes() == b"a picture"
    assert json.loads((home / "results" / "reproduction.cuda.json").read_text())["runs"]


def test_a_file_too_large_for_a_repository_stays(
    home: Path, away: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adopt, "LARGE", 1e6)
    assert command(adopt.parser(), adopt.run, [str(away)]) == 0
    card = weights.card("unet_mobilenet_v3")
    path = home / "weights" / card["file"]
    assert (
        not path.exists()
        and path.with_suffix(".json").exists()
        and (away / "weights" / card["file"]).exists()
    )
    assert f"{card['file']} is too large for a repository" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "no such folder; expected the --out of gpu.sh"),
        ("results", "has no results and no weights; expected the --out of gpu.sh"),
    ],
)
def test_what_is_no_output_of_it_is_one_line(
    name: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(adopt.parser(), adopt.run, [str(home / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adopt.py: error: ") and says in error and error.count("\n") == 1
