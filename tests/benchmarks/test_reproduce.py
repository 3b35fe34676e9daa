"""The reproduction table: its rows, what it says of the claims, and a whole run of the smallest size."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import reproduce
from benchmarks.measure.claims import CLAIMS, RISING, Claim, judge
from depthzoo.losses import list_losses
from depthzoo.models import list_models
from train.arguments import command
from train.config import load_recipe
from train.prepare import write
from train.sources import synthetic_rooms
from train.sources.frames import Frame

SMALL = ["--size", "32x64", "--batch-size", "2", "--frames", "4", "--epochs", "2"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduce") / "rooms"
    write(synthetic_rooms.read(24, (48, 96)), 24, out, (48, 96), source="rooms", terms="MIT")
    return out


def call(rooms: Path, folder: Path, *words: str) -> int:
    start = ["--data", str(rooms), "--runs", str(folder / "runs"), "--out", str(folder / "result.json")]
    return command(reproduce.parser(), reproduce.run, [*start, *SMALL, "--device", "cpu", *words])


def test_rows_differ_from_the_first_in_what_they_are_for() -> None:
    first = load_recipe(reproduce.RECIPES / "mse.toml")
    assert {path.stem for path in reproduce.RECIPES.glob("*.toml")} == set(reproduce.ROWS)
    for name in reproduce.ROWS:
        config = load_recipe(reproduce.RECIPES / f"{name}.toml")
        assert config.model in list_models() and set(config.loss) <= set(list_losses())
        changed = {key for key, value in vars(config).items() if value != getattr(first, key)}
        expected = {
            "mse": set(),
            "mse_longer": {"init", "epochs"},
            "combined": {"init", "epochs", "loss"},
            "bounded": {"head"},
            "bilinear": {"model"},
            "resnet50": {"model"},
            "berhu": {"loss"},
            "dispnet": {"model", "lr"},
        }
        assert changed == expected[name], name
        if config.init:
            assert reproduce.ROWS.index(Path(config.init).parent.name) < reproduce.ROWS.index(name)


def test_claims_are_of_rows_that_there_are() -> None:
    for claim in CLAIMS:
        assert {claim.better, claim.other} <= set(reproduce.ROWS)
        assert claim.figure in reproduce.SHOWN


def rows_of(figure: str, better: list[float], other: list[float]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {str(seed): {figure: value} for seed, value in enumerate(values)}
        for name, values in (("a", better), ("b", other))
    }


@pytest.mark.parametrize(
    ("better", "other", "word"),
    [
        ([1, 2, 3], [2, 3, 4], "holds"),
        ([2, 3, 4], [1, 2, 3], "fails"),
        ([1, 2, 5], [2, 3, 4], "open"),
        ([1, 2], [2, 3], "open"),  # too few
        ([2, 2, 2], [2, 2, 2], "fails"),
    ],
)
def test_a_claim_is_judged_by_all_of_three_seeds(better: list[float], other: list[float], word: str) -> None:
    (verdict,) = judge(rows_of("lines", better, other), [Claim("", "a", "b", "lines")])
    assert verdict.word() == word
    assert verdict.means() == (pytest.approx(np.mean(better)), pytest.approx(np.mean(other)))


def test_of_some_figures_more_is_better_and_seeds_are_paired() -> None:
    for figure in RISING:
        (verdict,) = judge(rows_of(figure, [3, 4, 5], [2, 3, 4]), [Claim("", "a", "b", figure)])
        assert verdict.word() == "holds"
    rows = rows_of("lines", [1, 9, 3], [2, 3])
    (verdict,) = judge(rows, [Claim("", "a", "b", "lines")])
    assert verdict.pairs == ((1, 2), (9, 3)) and verdict.wins == 1
    assert judge({"a": rows["a"]}, [Claim("", "a", "b", "lines")]) == []


def test_a_whole_run(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rows", "combined", "mse", "mse_longer", "--seeds", "3"]
    assert call(rooms, tmp_path, *words) == 0
    printed = capsys.readouterr().out
    assert "open   gradient and normal terms remove the lines: lines" in printed
    assert (
        printed.index("seed 3  mse ")
        < printed.index("seed 3  mse_longer")
        < printed.index("seed 3  combined")
    )
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert run["size"] == [32, 64] and run["count"] == 1 and run["command"].startswith("python benchmarks/")
    rows: dict[str, Any] = run["rows"]
    assert set(rows) == {"mse", "mse_longer", "combined"}
    for figures in (row["3"] for row in rows.values()):
        assert min(figures["abs_rel"], figures["lines"], figures["peak"]) > 0 and 0 <= figures["edge_f1"] <= 1
        assert figures["edge_f1"] == pytest.approx(
            np.mean([figures[f"edge_f1_{metres:g}"] for metres in (0.25, 0.5, 1)]), abs=2e-5
        )
    # Each from the last weights of the first, by the same pass over the same pictures, but for the loss.
    assert len({row["3"]["abs_rel"] for row in rows.values()}) == 3
    longer = load_recipe(tmp_path / "runs/seed3/combined/config.toml")
    assert longer.init == str(tmp_path / "runs/seed3/mse/last.safetensors") and longer.seed == 3
    with Image.open(tmp_path / "result.png") as picture:
        assert picture.size == (5 * 260, 20 + 132)

    # Nothing is done twice: what is stored is shown, although the runs are gone.
    for file in (tmp_path / "runs").rglob("*.safetensors"):
        file.unlink()
    assert call(rooms, tmp_path, *words) == 0
    again, before = (
        [line for line in text.splitlines() if line.startswith("seed")]
        for text in (capsys.readouterr().out, printed)
    )
    assert len(again) == 3 and again == before


def test_a_run_that_was_interrupted_goes_on(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "runs/seed0/mse/last.safetensors")

    words = ["--rows", "mse", "--seeds", "0", "--split", "val"]
    assert call(rooms, tmp_path / "whole", *words) == 0
    options = reproduce.RunOptions
    monkeypatch.setattr(reproduce, "RunOptions", lambda *args, **more: options(*args, **more, max_steps=3))
    assert call(rooms, tmp_path / "half", *words) == 0
    expected, half = weights("whole"), weights("half")
    assert any(not torch.equal(tensor, half[name]) for name, tensor in expected.items())
    monkeypatch.undo()
    assert call(rooms, tmp_path / "half", *words) == 0
    for name, tensor in weights("half").items():
        assert torch.equal(tensor, expected[name]), name
    assert not list(tmp_path.rglob("result.json"))  # figures of the validation split are not kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "combine"], "unknown row 'combine': did you mean 'combined'"),
        (["--rows", "combined"], "row combined goes on from mse: train that too"),
        (["--data", "nowhere"], "nowhere"),
        (["--rows", "mse", "--width", "0"], "width must be a whole number of 1 or more, not 0"),
    ],
)
def test_one_line_for_what_cannot_be(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call(rooms, tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_runs_of_other_settings_are_left_alone(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "mse", "--seeds", "0", "--split", "val"]
    assert call(rooms, tmp_path, *words) == 0
    before = (tmp_path / "runs/seed0/mse/last.safetensors").read_bytes()
    capsys.readouterr()
    assert call(rooms, tmp_path, *words, "--epochs", "1") == 2
    assert "holds a run of other settings; give another --runs" in capsys.readouterr().err
    assert (tmp_path / "runs/seed0/mse/last.safetensors").read_bytes() == before


def test_figures_of_another_machine_are_not_taken_for_this_ones(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "mse", "--seeds", "0"]
    assert call(rooms, tmp_path, *words) == 0
    path = tmp_path / "result.json"
    (here,) = json.loads(path.read_text())["runs"]
    other = {
        **here,
        "machine": here["machine"] | {"processor": "Z80"},
        "rows": {"mse": {"0": {"abs_rel": 1.0}}},
    }
    path.write_text(json.dumps({"runs": [other]}))
    assert call(rooms, tmp_path, *words) == 0
    runs = {run["machine"]["processor"]: run["rows"] for run in json.loads(path.read_text())["runs"]}
    assert runs == {"Z80": other["rows"], here["machine"]["processor"]: here["rows"]}


def test_truth_with_holes_has_no_lines_to_hold_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def holed() -> Iterator[Frame]:
        for frame in synthetic_rooms.read(24, (48, 96)):
            depth = frame.depth.copy()
            depth[10:20, 10:20] = 0
            yield dataclasses.replace(frame, depth=depth)

    write(holed(), 24, tmp_path / "rooms", (48, 96), source="rooms", terms="MIT")
    assert call(tmp_path / "rooms", tmp_path, "--rows", "mse", "--seeds", "0") == 2
    error = capsys.readouterr().err
    assert "no frame of the test split has truth everywhere" in error and error.count("\n") == 1
