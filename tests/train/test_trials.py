"""Comparing recipes: what is measured, how runs are paired, and the table in the documentation."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from train import trials
from train.arguments import command
from train.config import load_recipe
from train.records import load
from train.shards import ShardDataset


class Known(nn.Module):
    """Returns metres that were put in, frame by frame."""

    def __init__(self, depths: list[torch.Tensor]) -> None:
        super().__init__()
        self.depths = depths

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.depths.pop(0) for _ in image])


@pytest.mark.parametrize(
    ("factor", "power", "abs_rel", "scaled", "slope"),
    [(1.0, 1.0, 0.0, 0.0, 1.0), (1.2, 1.0, 0.2, 0.0, 1.0), (1.0, 0.5, None, None, 0.5)],
)
def test_measures_of_a_known_prediction(
    rooms_set: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    power: float,
    abs_rel: float | None,
    scaled: float | None,
    slope: float,
) -> None:
    """p = factor d ** power: a wrong scale is forgiven by abs_rel_scaled, the power is the slope."""
    dataset = ShardDataset(rooms_set, "val")
    depths = [
        factor * (torch.from_numpy(dataset[i][1].astype("float32")) / 1000)[None, None] ** power
        for i in range(len(dataset))
    ]
    monkeypatch.setattr(trials, "create_model", lambda *_, **__: Known(depths))
    monkeypatch.setattr("train.evaluation.working_size", lambda height, width, size: (height, width))
    figures = trials.measure(Path("any"), "any", dataset, (48, 64))
    if abs_rel is not None:
        assert figures["abs_rel"] == pytest.approx(abs_rel, abs=1e-5)
        assert figures["abs_rel_scaled"] == pytest.approx(scaled, abs=1e-5)
    assert figures["slope"] == pytest.approx(slope, abs=1e-4)


def line(row: str, fold: str, seed: int, abs_rel: float) -> dict[str, object]:
    return {"row": row, "fold": fold, "seed": seed, **dict.fromkeys(trials.COLUMNS, 0.5), "abs_rel": abs_rel}


def test_rows_are_compared_run_by_run() -> None:
    lines = [
        line("today", "a", 0, 0.20),
        line("today", "b", 0, 0.30),
        line("zoom", "a", 0, 0.19),
        line("zoom", "b", 0, 0.28),
        line("zoom", "c", 0, 0.90),  # without its pair
    ]
    today, zoom = trials.table(lines).splitlines()[2:]
    assert today == "| today | 2 | 0.250 | 0.500 | 0.500 | 0.500 | 0.500 |  |"
    # -.01 and -.02: mean -.015, standard error .005.
    assert zoom.startswith("| zoom | 3 |") and zoom.endswith("| -0.0150 ± 0.0050 |")


def test_every_row_differs_from_todays_in_what_it_says() -> None:
    recipes = {path.stem: load_recipe(path) for path in trials.RECIPES.glob("*.toml")}
    rows = {name: recipe for name, recipe in recipes.items() if name != trials.START}
    assert trials.FIRST in rows and trials.START in recipes
    assert len({repr(recipe) for recipe in rows.values()}) == len(rows)
    assert {(r.steps, r.batch_size, r.size) for r in rows.values()} == {(600, 16, (96, 128))}


@pytest.mark.slow
def test_a_row_is_trained_measured_and_not_repeated(rooms_set: Path, tmp_path: Path) -> None:
    results = tmp_path / "trials.jsonl"
    arguments = ["run", "--data", str(rooms_set), "--runs", str(tmp_path / "runs"), "--rows", "today"]
    arguments += ["--seeds", "0", "--steps", "2", "--results", str(results)]
    for _ in range(2):
        assert command(trials.parser(), trials.run, arguments) == 0
    (row,) = load(results)
    assert (row["row"], row["fold"], row["seed"], row["images"]) == ("today", "rooms", 0, 32)
    assert 0 < row["abs_rel"] < 5 and row == json.loads(results.read_text())


def test_the_documentation_has_the_table_of_the_results() -> None:
    text = (trials.RECIPES.parent / "README.md").read_text(encoding="utf-8")
    assert trials.table(load(trials.RESULTS)) in text
