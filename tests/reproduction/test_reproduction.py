"""The rows of the reproduction, the verdicts on the claims, and a whole run of the smallest size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depthzoo
from tests.data_sets import write_random_frames
from train import records
from train.arguments import command
from train.config import load_recipe
from train.reproduction import __main__ as reproduction
from train.reproduction.claims import CLAIMS, HIGHER_IS_BETTER, ROWS, Claim, judge

SMALL = ["--size", "32x64", "--batch-size", "2", "--frames", "4", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduction") / "rooms"
    return write_random_frames(out, (48, 96), {"val": 2, "test": 2, "train": 20})


def call(rooms: Path, folder: Path, *words: str) -> int:
    start = ["--data", str(rooms), "--runs", str(folder / "runs"), "--out", str(folder / "rows.jsonl")]
    return command(reproduction.parser(), reproduction.run, [*start, *SMALL, *words])


def test_rows_differ_from_the_first_in_what_they_are_for() -> None:
    expected: dict[str, set[str]] = {
        "mse": set(),
        "mse_longer": {"init", "epochs"},
        "combined": {"init", "epochs", "loss"},
        "bounded": {"head"},
        "bilinear": {"model"},
        "resnet50": {"model"},
        "berhu": {"loss"},
        "dispnet": {"model", "lr"},
    }
    first = load_recipe(reproduction.RECIPES / "mse.toml")
    assert {path.stem for path in reproduction.RECIPES.glob("*.toml")} == set(ROWS) == expected.keys()
    for name in ROWS:
        config = load_recipe(reproduction.RECIPES / f"{name}.toml")
        assert config.model in depthzoo.list_models() and set(config.loss) <= set(depthzoo.list_losses())
        assert {key for key, value in vars(config).items() if value != getattr(first, key)} == expected[name]
        if config.init:
            assert ROWS.index(Path(config.init).parent.name) < ROWS.index(name)


def test_claims_are_about_rows_and_metrics_that_exist() -> None:
    for claim in CLAIMS:
        assert {claim.better, claim.other} <= set(ROWS) and claim.metric in reproduction.METRICS


def made_rows(metric: str, better: list[float], other: list[float]) -> list[dict[str, Any]]:
    return [
        {"row": name, "seed": seed, metric: value}
        for name, values in (("a", better), ("b", other))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("better", "other", "word"),
    [
        ([1, 2, 3], [2, 3, 4], "holds"),
        ([2, 3, 4], [1, 2, 3], "fails"),
        ([1, 2, 5], [2, 3, 4], "open"),
        ([1, 2], [2, 3], "open"),  # too few seeds
        ([2, 2, 2], [2, 2, 2], "fails"),
    ],
)
def test_a_claim_is_judged_by_all_of_three_seeds(better: list[float], other: list[float], word: str) -> None:
    (verdict,) = judge(made_rows("lines", better, other), [Claim("", "a", "b", "lines")])
    assert verdict.word == word
    assert verdict.means == (pytest.approx(np.mean(better)), pytest.approx(np.mean(other)))


def test_some_metrics_are_better_when_higher_and_seeds_are_paired() -> None:
    for metric in HIGHER_IS_BETTER:
        (verdict,) = judge(made_rows(metric, [3, 4, 5], [2, 3, 4]), [Claim("", "a", "b", metric)])
        assert verdict.word == "holds"
    (verdict,) = judge(made_rows("lines", [1, 9, 3], [2, 3]), [Claim("", "a", "b", "lines")])
    assert verdict.pairs == ((1, 2), (9, 3)) and verdict.wins == 1
    assert judge(made_rows("lines", [1], []), [Claim("", "a", "b", "lines")]) == []


@pytest.mark.slow
def test_a_whole_run(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rows", "combined", "mse", "mse_longer", "--seeds", "3", "--width", "8"]
    assert call(rooms, tmp_path, *words) == 0
    printed = capsys.readouterr().out
    assert "open   gradient and normal terms remove the lines: lines" in printed
    order = [printed.index(f"seed 3  {name} ") for name in ("mse", "mse_longer", "combined")]
    assert order == sorted(order)
    rows = records.load(tmp_path / "rows.jsonl")
    assert [row["row"] for row in rows] == ["mse", "mse_longer", "combined"]
    for row in rows:
        assert (row["seed"], row["height"], row["width"], row["model_width"]) == (3, 32, 64, 8)
        assert min(row["abs_rel"], row["lines"], row["peak"]) > 0 and 0 <= row["edge_f1"] <= 1
    assert len({tuple(row[key] for key in reproduction.METRICS) for row in rows}) == 3
    longer = load_recipe(tmp_path / "runs/seed3/combined/config.toml")
    assert longer.init == str(tmp_path / "runs/seed3/mse/last.safetensors") and longer.seed == 3
    # Nothing is done twice: stored rows are shown although the runs are gone.
    for file in (tmp_path / "runs").rglob("*.safetensors"):
        file.unlink()
    assert call(rooms, tmp_path, *words) == 0
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seed")]
    assert again == [line for line in printed.splitlines() if line.startswith("seed")]


@pytest.mark.slow
def test_runs_of_other_settings_are_left_alone(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "mse", "--seeds", "0", "--split", "val", "--width", "8"]
    assert call(rooms, tmp_path, *words) == 0
    assert not (tmp_path / "rows.jsonl").exists()  # the validation split is not stored
    before = (tmp_path / "runs/seed0/mse/last.safetensors").read_bytes()
    assert call(rooms, tmp_path, *words, "--epochs", "1") == 2
    assert "holds a run of other settings; give another --runs" in capsys.readouterr().err
    assert (tmp_path / "runs/seed0/mse/last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "combined"], "row combined starts from mse: train that too"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call(rooms, tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
