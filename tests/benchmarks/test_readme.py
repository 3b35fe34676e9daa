"""README.md and benchmarks/README.md against what they are made from."""

import shutil
from pathlib import Path

import pytest

from benchmarks import readme
from train.arguments import command


@pytest.fixture
def copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both files and of the results."""
    for name in readme.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    shutil.copytree(root / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "benchmarks" / "results")
    return tmp_path


def call(*arguments: str) -> int:
    return command(readme.parser(), readme.run, list(arguments))


def test_both_files_are_what_their_sources_say(root: Path) -> None:
    assert not readme.stale(root, root / "benchmarks" / "results")


def test_check_fails_on_a_changed_figure_and_writes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--check") == 0
    results = copy / "benchmarks" / "results" / "overfit.json"
    results.write_text(results.read_text().replace('"abs_rel": 0.0189', '"abs_rel": 0.0188'))
    before = (copy / "benchmarks" / "README.md").read_text()
    assert call("--check") == 1
    assert capsys.readouterr().err == "benchmarks/README.md is not what its sources say: run make readme\n"
    assert (copy / "benchmarks" / "README.md").read_text() == before
    assert call() == 0 and call("--check") == 0
    assert "| 0.0188 |" in (copy / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("name", list(readme.DOCUMENTS))
def test_check_fails_on_a_figure_typed_by_hand(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace("| `unet_mobilenet_v3` |", "| `unet_mobilenet_v4` |", 1))
    assert call("--check") == 1
    assert capsys.readouterr().err == f"{name} is not what its sources say: run make readme\n"
    assert call() == 0
    assert (copy / name).read_text() == text


def test_a_missing_marker_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "benchmarks" / "README.md"
    path.write_text(path.read_text().replace("<!-- /peers -->", ""))
    assert call() == 2
    assert capsys.readouterr().err == (
        "readme.py: error: benchmarks/README.md must have <!-- peers --> and <!-- /peers --> once\n"
    )


def test_pictures_are_shown_where_they_exist(tmp_path: Path) -> None:
    show = readme.pictures("latency*.png")
    assert show(tmp_path) == "Nothing to draw yet."
    (tmp_path / "latency.z80.png").touch()
    assert show(tmp_path) == "![latency.z80.png](results/latency.z80.png)"
