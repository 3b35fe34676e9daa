"""Which files a command line means, and what their outputs are called."""

from pathlib import Path

import pytest
from PIL import Image

from depthzoo.images import find_images, unique_stems


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "sub/c.png", "sub/.hidden.png", ".git/d.png", "e[1].png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(name)
    Path("notes.txt").write_text("no picture")

    def found(*texts: str, recursive: bool = False) -> list[str]:
        return [path.as_posix() for path in find_images(texts, recursive)[0]]

    assert found(".") == ["a.png", "b.JPG", "e[1].png"]
    assert found(".", recursive=True) == ["a.png", "b.JPG", "e[1].png", "sub/c.png"]
    assert found("*.png") == ["a.png", "e[1].png"]
    assert found("**/c.*") == ["sub/c.png"]
    assert found("e[1].png", "e[[]1].png", "./e[1].png") == ["e[1].png"]
    assert found("notes.txt") == ["notes.txt"]
    assert find_images(["x.png", "*.gif", ".git"])[1] == [
        "x.png: no such file or folder",
        "*.gif: matches no file",
    ]


def test_stems_are_unique_whatever_the_case() -> None:
    paths = [Path(p) for p in ("a/x.png", "a/y.png", "b/x.jpg", "b/X.png", "b/x-2.png")]
    assert unique_stems(paths) == ["x", "y", "x-3", "X-4", "x-2"]
