"""A data set of small rendered rooms."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """24 rooms of 48x96: most to train, at least one to validate and one to test."""
    out = tmp_path_factory.mktemp("data") / "rooms"
    command = ["-m", "train.prepare", "rooms", "--count", "24", "--size", "48x96", "--out", str(out)]
    subprocess.run([sys.executable, *command], cwd=root, check=True, capture_output=True)
    return out
