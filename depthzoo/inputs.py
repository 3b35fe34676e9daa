"""Which pictures a command line means, and what their outputs are called."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from depthzoo.images import SUFFIXES

# What `depthzoo predict` writes itself; a folder that holds both is not predicted from its own output.
OWN_OUTPUTS = (".depth.png", ".color.png", ".panel.png")


def find_pictures(inputs: Sequence[str], recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Resolves files, folders and glob patterns.

    A file is taken whatever its name. Of a folder: all with a picture's suffix, in alphabetical order, except
    hidden ones and this command's own outputs. A file that is meant twice is taken once.

    Args:
        inputs: paths and patterns (``**`` goes through folders).
        recursive: go into the folders inside folders.

    Returns:
        The paths, and for each input that means nothing one line that says so.
    """
    found: dict[Path, Path] = {}
    failures = []
    for text in inputs:
        matches = _matches(text, recursive)
        if isinstance(matches, str):
            failures.append(matches)
            continue
        for path in matches:
            found.setdefault(path.resolve(), path)
    return list(found.values()), failures


def _matches(text: str, recursive: bool) -> list[Path] | str:
    path = Path(text)
    if path.is_dir():
        return _of_folder(path, recursive) or f"{text}: no pictures in this folder" + (
            "" if recursive else " itself (--recursive looks into the folders in it)"
        )
    # A file may be called photo[1].jpg.
    if os.path.lexists(text):
        return [path]
    if not glob.has_magic(text):
        return f"{text}: no such file or folder"
    return [p for p in map(Path, sorted(glob.glob(text, recursive=True))) if not p.is_dir()] or (
        f"{text}: matches no file"
    )


def _of_folder(folder: Path, recursive: bool) -> list[Path]:
    paths: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        paths += [
            Path(root, name)
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES
            and not name.startswith(".")
            and not name.lower().endswith(OWN_OUTPUTS)
        ]
    return paths


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """One name for each path's outputs: its stem, and for a second one of the same stem ``stem-2``.

    Names that differ in case only count as the same, as they are on some file systems.
    """
    taken = {path.stem.casefold() for path in paths}
    seen: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 2
        if stem.casefold() in seen:
            while f"{stem}-{number}".casefold() in taken:
                number += 1
            stem = f"{stem}-{number}"
            taken.add(stem.casefold())
        seen.add(stem.casefold())
        stems.append(stem)
    return stems
