"""A data set of small frames."""

from pathlib import Path

import pytest

from tests.data_sets import write_random_frames


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 48x96."""
    out = tmp_path_factory.mktemp("data") / "rooms"
    return write_random_frames(out, (48, 96), {"val": 2, "test": 2, "train": 20})
