"""A recipe with a teacher: pictures labelled once, mixed into every batch, resumed exactly."""

import json
from pathlib import Path

import pytest
import torch

from depthzoo.files import sha256_of
from depthzoo.weights import read_metadata
from train.__main__ import parser, run
from train.arguments import command
from train.checkpoint import load_checkpoint, same
from train.config import load_recipe
from train.distributed import World
from train.engine import Run
from train.feed import Sources
from train.progress import TrainingError
from train.shards import ShardDataset
from train.teacher import labelled_by_teacher


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> Path:
    path = tmp_path / "student.toml"
    path.write_text(
        'model = "unet_mobilenet_v3"\nsize = [64, 64]\nsteps = 4\nbatch_size = 4\nprecision = "fp32"\n'
        "validate_every = 4\ncheckpoint_every = 2\n[loss]\nsilog = 1.0\n[augment]\nflip = true\n"
        f'[teacher]\nmodel = "{teacher}"\nshare = 0.5\nsize = [48, 64]\nterms = "of the pictures"\n'
    )
    return path


def train(*arguments: object) -> int:
    return command(parser(), run, [*map(str, arguments), "--deterministic", "--no-report"])


@pytest.fixture(autouse=True)
def undo_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def test_half_of_each_batch_has_the_teachers_depth(
    rooms_set: Path, pictures: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    training = Run(load_recipe(recipe), Sources(rooms_set, pictures=(pictures,)), out)
    *_, keys = training.feed.batch(0, (64, 64))
    assert [key.startswith("room-") for key in keys] == [True, True, False, False]
    assert set(keys[2:]) <= set(ShardDataset(out / "pseudo", "train").keys)
    assert training.total == 4


def test_a_student_resumes_exactly_and_its_card_names_the_teacher(
    rooms_set: Path, pictures: Path, teacher: Path, recipe: Path, tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    base = ["--recipe", recipe, "--data", rooms_set, "--pictures", pictures]
    assert train(*base, "--out", straight) == 0
    assert train(*base, "--out", broken, "--max-steps", 2) == 0
    labels = (broken / "pseudo" / "dataset.json").stat()
    assert train("--out", broken, "--resume") == 0  # the run knows where the pictures are
    assert (broken / "pseudo" / "dataset.json").stat().st_mtime_ns == labels.st_mtime_ns
    a, b = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (straight, broken))
    assert b.state["resumed_from"] == [2] and same(a.model, b.model)
    card = read_metadata(broken / "model.safetensors")
    (mixed,) = card["mixed_with"]
    assert mixed["teacher"]["sha256"] == sha256_of(teacher) and mixed["teacher"]["flip"] is True
    assert "of the pictures" in card["terms"] and "of the teacher" in card["terms"]
    assert str(tmp_path) not in json.dumps(card)


def test_another_teacher_by_flag(
    rooms_set: Path, pictures: Path, teacher: Path, recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace(str(teacher), "unet_resnet50"))
    out = tmp_path / "run"
    arguments = ["--recipe", recipe, "--data", rooms_set, "--pictures", pictures, "--out", out]
    assert train(*arguments, "--teacher", teacher) == 0
    config = load_recipe(out / "config.toml")
    assert config.teacher.model == str(teacher) and config.teacher.size == (48, 64)
    (mixed,) = read_metadata(out / "model.safetensors")["mixed_with"]
    assert mixed["teacher"]["sha256"] == sha256_of(teacher)


def test_labels_of_another_teacher_are_refused(
    rooms_set: Path, pictures: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    base = ["--recipe", recipe, "--data", rooms_set, "--pictures", pictures, "--out", out]
    assert train(*base, "--max-steps", 2) == 0
    path = out / "pseudo" / "dataset.json"
    content = json.loads(path.read_text())
    content["labelling"]["teacher"] = "0" * 64
    path.write_text(json.dumps(content))
    assert train(*base, "--resume") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was labelled by another teacher" in error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "a teacher needs pictures to label (--pictures)"),
        (["--pictures", "nowhere.tar"], "nowhere.tar: no such tar or folder"),
        (["--pictures", "PICTURES", "--batch-size", "5"], "gives 3 + 2 pictures a step"),
    ],
)
def test_bad_teachers_are_one_line(
    rooms_set: Path,
    pictures: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    says: str,
) -> None:
    flags = [str(pictures) if flag == "PICTURES" else flag for flag in flags]
    accumulated = recipe.read_text().replace("batch_size = 4", "batch_size = 4\naccumulate = 1")
    recipe.write_text(accumulated)
    if "5" in flags:
        recipe.write_text(accumulated.replace("accumulate = 1", "accumulate = 5"))
    assert train("--recipe", recipe, "--data", rooms_set, "--out", tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0
    assert not (tmp_path / "run" / "pseudo").exists()


def test_pictures_without_a_teacher_are_one_line(rooms_set: Path, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    path.write_text('model = "unet_mobilenet_v3"\n')
    with pytest.raises(TrainingError, match=r"pictures need a \[teacher\]"):
        Run(load_recipe(path), Sources(rooms_set, pictures=(pictures,)), tmp_path / "run")


def test_other_processes_wait_for_the_labels_of_the_first(
    pictures: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, cpu = load_recipe(recipe).teacher, tmp_path / "pseudo", torch.device("cpu")
    waited = []

    def first_process(seconds: float) -> None:
        waited.append(seconds)
        labelled_by_teacher(config, [pictures], out, (48, 64), cpu, World())

    monkeypatch.setattr("train.teacher.time.sleep", first_process)
    assert labelled_by_teacher(config, [pictures], out, (48, 64), cpu, World(rank=1, size=2)) == out
    assert len(waited) == 1
