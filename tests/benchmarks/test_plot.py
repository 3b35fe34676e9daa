"""Plots of result files of a machine that does not exist."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import plot
from benchmarks.report import plot_data
from depthzoo import weights
from train.arguments import command

pytest.importorskip("matplotlib")
DRAWN = {
    "accuracy.size",
    "accuracy.z80-2-threads",
    "latency.z80-2-threads.480x640.1",
    "latency.z80-2-threads.192x256.1",
    "training.z80-2-threads.96x128",
    "scaling.z80-2-threads",
}


def call(results: Path, *arguments: str) -> int:
    return command(plot.parser(), plot.run, ["--results", str(results), *arguments])


def test_pictures_are_small_not_blank_and_the_same_each_time(made_results: Path) -> None:
    assert call(made_results) == 0
    first = {path.stem: path.read_bytes() for path in made_results.glob("*.png")}
    assert set(first) == DRAWN
    for name, content in first.items():
        pixels = np.asarray(Image.open(made_results / f"{name}.png").convert("RGB"))
        assert len(content) < 150_000 and min(pixels.shape[:2]) > 150
        # Neither blank nor one-coloured: bars, curves or points, in colour.
        assert (
            len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
            and np.ptp(pixels.astype(int), axis=2).max() > 60
        )
    assert call(made_results) == 0
    assert {path.stem: path.read_bytes() for path in made_results.glob("*.png")} == first


def test_check_says_which_picture_is_not_of_todays_figures(
    made_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(made_results, "--check") == 1
    assert call(made_results) == call(made_results, "--check") == 0
    capsys.readouterr()
    path = made_results / "training.cpu.json"
    path.write_text(path.read_text().replace("7.0", "7.5"))
    before = (made_results / "training.z80-2-threads.96x128.png").read_bytes()
    assert call(made_results, "--check") == 1
    expected = "training.z80-2-threads.96x128.png is not of today's figures: run benchmarks/plot.py\n"
    assert capsys.readouterr().err == expected
    assert (made_results / "training.z80-2-threads.96x128.png").read_bytes() == before


def test_what_is_missing_is_named_and_what_it_showed_removed(
    made_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(made_results) == 0
    Image.new("RGB", (8, 8)).save(made_results / "panel.png")
    (made_results / "scaling.cpu.json").unlink()
    (made_results / "latency.cpu.json").unlink()
    assert call(made_results) == 0
    out = capsys.readouterr().out
    assert "scaling.curves not drawn: no scaling has been measured\n" in out
    assert "latency.480x640.1 not drawn: no latency has been measured\n" in out
    assert "accuracy.latency not drawn: no latency of batch 1 has been measured\n" in out
    assert {path.stem for path in made_results.glob("*.png")} == {
        "panel",
        "accuracy.size",
        "training.z80-2-threads.96x128",
    }


def test_accuracy_goes_only_with_what_was_measured_at_its_size(made_results: Path) -> None:
    found, _ = plot_data.accuracy(made_results)
    panels = found["z80-2-threads"]["panels"]
    card = weights.card("unet_mobilenet_v3")
    points = panels["latency of one picture (ms)"]
    # 20 ms is eager at 192x256; there is no export_accuracy.json here, so onnxruntime's AbsRel is not known.
    assert points == [
        {
            "model": "unet_mobilenet_v3",
            "way": "eager",
            "abs_rel": card["metrics"]["per_image"]["abs_rel"],
            "median": 20.0,
            "peak_memory": 300 * 2**20,
            "x": 20.0,
        }
    ]
    exported = {"weights": card["file"], "rows": {"int8": {"abs_rel": 0.25, "bytes": 4e6}}}
    (made_results / "export_accuracy.json").write_text(
        json.dumps({"models": {"unet_mobilenet_v3": exported}})
    )
    found, _ = plot_data.accuracy(made_results)
    points = found["z80-2-threads"]["panels"]["peak memory (MiB)"]
    assert [(point["way"], point["abs_rel"], point["x"]) for point in points] == [
        ("eager", card["metrics"]["per_image"]["abs_rel"], 300.0),
        ("onnxruntime int8", 0.25, 300.0),
    ]
    # Figures of other weights are not those of this card.
    exported["weights"] = "unet_mobilenet_v3_nyu-00000000.safetensors"
    (made_results / "export_accuracy.json").write_text(
        json.dumps({"models": {"unet_mobilenet_v3": exported}})
    )
    found, _ = plot_data.accuracy(made_results)
    assert len(found["z80-2-threads"]["panels"]["peak memory (MiB)"]) == 1


def test_no_latency_at_the_weights_own_size(made_results: Path) -> None:
    path = made_results / "latency.cpu.json"
    path.write_text(json.dumps({"runs": json.loads(path.read_text())["runs"][:1]}))
    found, missing = plot_data.accuracy(made_results)
    assert set(found) == {"size"}
    assert missing["z80-2-threads"].startswith("no latency at the weights' own size (")


def test_each_gpu_has_its_own_pictures(gpu_results: Path) -> None:
    found, missing = plot_data.latency(gpu_results)
    assert {"voodoo-2.480x640.1", "voodoo-3.480x640.1", "z80-2-threads.480x640.1"} <= set(
        found
    ) and not missing
    bar = found["voodoo-3.480x640.1"]["bars"][0]
    assert bar["median"] == 5.0 and bar["floor"] == 25.0 and bar["way"] == "eager"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert error.startswith("plot.py: error: ") and "none: no such folder" in error and error.count("\n") == 1


def test_the_pictures_in_the_repository_show_what_the_results_say(root: Path) -> None:
    assert call(root / "benchmarks" / "results", "--check") == 0
