"""Fixtures of all tests: the checkout, and the real frames that DEPTHZOO_DATA points to."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Ctrl-C works here and in subprocesses, also where the suite was started with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``nyu_v2_labelled``; skips if DEPTHZOO_DATA is unset, fails if it is wrong."""
    folder = os.environ.get("DEPTHZOO_DATA")
    if not folder:
        pytest.skip("DEPTHZOO_DATA is unset: no real NYU Depth V2 frames")
    path = Path(folder).resolve()
    if not (path / "nyu_v2_labelled" / "splits.json").is_file():
        pytest.fail(f"DEPTHZOO_DATA={folder} holds no nyu_v2_labelled/splits.json")
    return path


@pytest.fixture(scope="session")
def nyu_frames(real_data: Path) -> list[tuple[Path, Path]]:
    """(image, 8-bit filled depth) of a few test frames."""
    folder = real_data / "nyu_v2_labelled"
    return [
        (folder / "images" / f"{i:04d}.jpg", folder / "depths" / f"{i:04d}.png") for i in (0, 8, 200, 1445)
    ]
