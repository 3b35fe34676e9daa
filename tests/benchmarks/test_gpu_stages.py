"""The stages of gpu.sh: their commands, their order, and what is owed. No GPU is needed."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Runner
from benchmarks.measure.claims import ROWS
from benchmarks.stages import owed, plan
from benchmarks.stages.journal import JOURNAL, Journal
from benchmarks.stages.owed import WANTED, Wanted
from benchmarks.stages.plan import FULL, TINY, Plan
from depthzoo import weights
from train.arguments import command
from train.shards import write_dataset

VOODOO = "Voodoo 2"


def call(*arguments: str) -> int:
    return command(gpu.parser(), gpu.run, list(arguments))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set by name, with 700 train frames."""
    folder = tmp_path / "data"
    folder.mkdir()
    shard = {"file": "train-000000.tar", "count": 350, "bytes": 1, "sha256": ""}
    write_dataset(folder, {"train": {"shards": [shard, shard], "size": [288, 384], "focal_px": 311.0}})
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


# -- what there is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [FULL, TINY], ids=["full", "tiny"])
def test_every_command_is_one_that_its_script_takes(
    scale: plan.Scale, data: Path, out: Path, root: Path
) -> None:
    names = set()
    for stage in Plan(out, scale, data, data / "frames.mat", "none", (data,)).stages():
        names.add(stage.name)
        words = list(stage.words)
        if words[0] == "-m" and words[1] != "pytest":
            module = {"train": "train.__main__", "train.evaluate": "train.evaluate"}[words[1]]
            args = importlib.import_module(module).parser().parse_args(words[2:])
            assert str(out) in " ".join(words) and args.device == scale.device
            left = args.json if words[1] == "train.evaluate" else args.out / "model.safetensors"
            assert left == out / stage.product
        elif words[0] != "-m":
            script = root / words[0]
            assert script.is_file()
            args = importlib.import_module(f"benchmarks.{script.stem}").parser().parse_args(words[1:])
            assert args.out == out / stage.product and args.device == scale.device
            # Names of models, peers and backends are looked up later.
            if script.stem == "latency":
                importlib.import_module("benchmarks.latency").check(args, torch.device(scale.device))
    assert len(names) == len(list(Plan(out, scale, data, pictures=(data,)).stages()))


def test_the_stages_are_what_a_gpu_is_asked_for(data: Path) -> None:
    names = [stage.name for stage in Plan(data=data).stages()]
    models = (
        "unet_resnet50",
        "unet_mobilenet_v3",
        "unet",
        "dispnet_vgg16",
        "unet_bilinear",
        "unet_resnet50_heavy",
    )
    for model in models:
        for size in ("240x320", "480x640"):
            assert {f"latency-{model}-{size}-1", f"latency-{model}-{size}-16"} <= set(names)
        assert {f"training-{model}", f"largest-{model}"} <= set(names)
    assert {"environment", "tests", "peers-native-1", "predictor", "scaling-processes", "loading"} <= set(
        names
    )
    weights_last = names.index("evaluate-unet_resnet50_heavy-nyu")
    assert names[weights_last - 1] == "train-unet_resnet50_heavy-nyu"
    assert names[weights_last + 1 :] == [f"reproduce-{row}-{seed}" for seed in range(3) for row in ROWS]
    assert names.index("train-unet-nyu-mse") < names.index("train-unet-nyu-combined")


def test_the_second_stage_of_the_seed_starts_from_the_first(data: Path, out: Path) -> None:
    by_name = {stage.name: stage for stage in Plan(out, FULL, data).stages()}
    stage = by_name["train-unet-nyu-combined"]
    start = out / "runs" / "unet-nyu-mse" / "model.safetensors"
    assert start in stage.needs and stage.words[stage.words.index("--init") + 1] == str(start)
    runner = Runner(Plan(out, FULL, data), Journal(out, VOODOO))
    assert runner.lacking(stage) == "waits for train-unet-nyu-mse"
    # A training that is not finished has left weights, too.
    start.parent.mkdir(parents=True)
    start.touch()
    assert (
        runner.lacking(stage)
        == runner.lacking(by_name["evaluate-unet-nyu-mse"])
        == "waits for train-unet-nyu-mse"
    )
    runner.journal.note(by_name["train-unet-nyu-mse"], 1.0)
    assert runner.lacking(stage) == runner.lacking(by_name["evaluate-unet-nyu-mse"]) == ""
    start.unlink()
    assert runner.lacking(stage) == "waits for runs/unet-nyu-mse/model.safetensors"


def test_where_there_are_pictures_a_model_becomes_its_own_student(data: Path, out: Path) -> None:
    by_name = {
        stage.name: stage for stage in Plan(out, FULL, data, pictures=(data / "a.tar", data / "b")).stages()
    }
    stage = by_name["student-unet_resnet50-nyu"]
    first = out / "runs" / "unet_resnet50-nyu" / "model.safetensors"
    args = importlib.import_module("train.__main__").parser().parse_args(stage.words[2:])
    assert args.init == args.teacher_model == str(first) and args.size == (288, 384)
    assert args.pictures == [data / "a.tar", data / "b"]
    assert stage.after == "train-unet_resnet50-nyu" and first in stage.needs
    # What is measured is the student.
    measured = by_name["evaluate-unet_resnet50-nyu"]
    assert measured.after == stage.name and measured.words[2] == str(out / stage.product)
    assert "student-unet-nyu-mse" not in by_name
    assert not [stage for stage in Plan(out, FULL, data).stages() if stage.name.startswith("student-")]


def test_a_row_that_goes_on_from_another_waits_for_it(data: Path, out: Path) -> None:
    by_name = {stage.name: stage for stage in Plan(out, FULL, data).stages()}
    for seed in "012":
        assert by_name[f"reproduce-combined-{seed}"].after == f"reproduce-mse-{seed}"
        assert by_name[f"reproduce-bilinear-{seed}"].after == ""


def test_the_seeds_recipes_are_fitted_to_fewer_frames() -> None:
    mse, combined = (one for one in WANTED if one.model == "unet")
    # 160,000 images are 229 times 700, in batches of 2; the second stage is a tenth of that.
    assert owed.length(mse, 700) == ["--frames", "0", "--epochs", "229", "--validate-every", "4007"]
    assert owed.length(combined, 700) == ["--frames", "0", "--epochs", "23", "--validate-every", "402"]
    assert owed.length(mse, 50_000) == owed.length(WANTED[0], 700) == []


# -- what is owed -----------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of weights in which one is of a GPU and one of a CPU."""
    path = tmp_path / "manifest.json"

    def entry(device: str) -> dict[str, Any]:
        (tmp_path / f"{device}.json").write_text(json.dumps({"trained_on": {"device": device}}))
        return {"nyu": {"file": f"{device}.safetensors"}}

    path.write_text(json.dumps({"unet_resnet50": entry(VOODOO), "unet_mobilenet_v3": entry("CPU")}))
    monkeypatch.setattr(weights, "MANIFEST", path)
    monkeypatch.setattr(weights, "BUNDLED", tmp_path)
    return path


def test_weights_without_a_card_or_from_a_cpu_are_owed(table: Path, out: Path) -> None:
    found = owed.owed([table, out / "no such file"])
    assert {(one.model, one.tag): reason for one, reason in found.items()} == {
        ("unet_mobilenet_v3", "nyu"): "trained on a CPU",
        ("unet", "nyu-mse"): "no card",
        ("unet", "nyu-combined"): "no card",
        ("dispnet_vgg16", "nyu"): "no card",
        ("unet_bilinear", "nyu"): "no card",
        ("unet_resnet50_heavy", "nyu"): "no card",
    }


def test_missing_lists_exactly_what_is_missing(
    table: Path, out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = list(Plan(out, FULL, data).stages())
    left = {"tests", "latency-unet-480x640-16"}
    journal = {stage.name: {"seconds": 1, "commit": "0"} for stage in everything if stage.name not in left}
    (out / JOURNAL).write_text(json.dumps({"stages": {VOODOO: journal}}))
    for stage in everything:
        if stage.product.endswith(".cuda.json"):
            run = {"machine": {"device": "cuda", "gpu": VOODOO}}
            (out / stage.product).write_text(json.dumps({"runs": [run]}))
    monkeypatch.setattr(gpu, "this_gpu", lambda: VOODOO)
    assert call("--missing", "--out", str(out), "--data", str(data)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(line[:9].strip(), line[9:].split("  ")[0]) for line in lines] == [
        ("stage", "tests"),
        ("stage", "latency-unet-480x640-16"),
        ("weights", "unet_mobilenet_v3 nyu"),
        ("weights", "unet nyu-mse"),
        ("weights", "unet nyu-combined"),
        ("weights", "dispnet_vgg16 nyu"),
        ("weights", "unet_bilinear nyu"),
        ("weights", "unet_resnet50_heavy nyu"),
    ]
    # On another GPU nothing has been measured.
    monkeypatch.setattr(gpu, "this_gpu", lambda: "Voodoo 3")
    assert call("--missing", "--out", str(out)) == 0
    other = capsys.readouterr().out
    # The weights of unet_resnet50 are there, whichever GPU made them.
    owing = [stage.name for stage in everything if not stage.name.endswith("-unet_resnet50-nyu")]
    assert [line.split()[1] for line in other.splitlines() if line.startswith("stage")] == owing


def test_wanted_weights_have_recipes(root: Path) -> None:
    for one in (*WANTED, *TINY.wanted):
        assert isinstance(one, Wanted) and (root / "train" / "recipes" / f"{one.recipe}.toml").is_file()
