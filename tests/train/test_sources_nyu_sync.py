"""BTS's lists and folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.shards import ShardDataset
from train.sources.nyu_sync import LISTS, NyuSync

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, picture_bytes: Callable[..., bytes], noise: Callable[..., np.ndarray]) -> Path:
    """4 frames in 2 scenes (3 folders), 1 test frame; the lists where BTS has them."""
    root = tmp_path / "nyu_depth_v2"
    rows: dict[str, list[str]] = {"train": [], "test": []}
    frames = [
        ("sync", scene, n) for scene in ("kitchen_0028a", "kitchen_0028b", "office_0001") for n in (0, 45)
    ]
    for number, (base, scene, frame) in enumerate([*frames, ("official_splits/test", "bathroom", 45)]):
        place = root / base / scene
        place.mkdir(parents=True, exist_ok=True)
        (place / f"rgb_{frame:05d}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
        depth = np.full((32, 48), 1500 + number, np.uint16)
        depth[2, 3] = 0
        (place / f"sync_depth_{frame:05d}.png").write_bytes(picture_bytes(depth))
        row = f"/{scene}/rgb_{frame:05d}.jpg /{scene}/sync_depth_{frame:05d}.png 518.8579"
        rows["train" if base == "sync" else "test"].append(row)
    for split, lines in rows.items():
        (root / LISTS[split]).write_text("\n".join(lines) + "\n\n")
    return root


def test_values_and_bytes(folder: Path, tmp_path: Path, run_prepare: Run) -> None:
    assert run_prepare("nyu-sync", folder, "--out", tmp_path / "set", "--workers", 1) == 0
    test = ShardDataset(tmp_path / "set", "test")
    assert test.keys == ["bathroom-rgb_00045"] and test.focal_px == 518.8579
    depth = test[0][1]
    assert depth[2, 3] == 0 and depth[0, 0] == 1506
    place = folder / "official_splits/test/bathroom"
    assert test.encoded(0) == tuple(
        (place / name).read_bytes() for name in ("rgb_00045.jpg", "sync_depth_00045.png")
    )
    info = test.info
    assert info["truth"] == "raw"
    val, train = (ShardDataset(tmp_path / "set", split).keys for split in ("val", "train"))
    assert sorted({key.split("_00")[0] for key in train + val}) == ["kitchen", "office"]
    assert len({key.split("_00")[0] for key in val}) == 1
    assert len({key.split("_00")[0] for key in train}) == 1


def test_given_lists_and_no_test_list(
    folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / LISTS["test"]).unlink()
    (folder / LISTS["train"]).rename(tmp_path / "mine.txt")
    out = tmp_path / "set"
    assert run_prepare("nyu-sync", folder, "--train-list", tmp_path / "mine.txt", "--out", out) == 0
    assert "no test split" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no split 'test'"):
        ShardDataset(out, "test")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no list", "give --train-list FILE"),
        ("empty", "is empty: no train frames"),
        ("columns", "line 2: 'a.jpg b.png'; expected: rgb depth focal"),
        ("focal", "line 2: 'a.jpg b.png far'; expected: rgb depth focal"),
        ("missing", "line 8: /attic/rgb_1.jpg is not in"),
        ("8 bit", "no 16-bit PNG"),
        ("binary", "not a text file"),
    ],
)
def test_bad_source(
    folder: Path,
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    picture_bytes: Callable[..., bytes],
    how: str,
    says: str,
) -> None:
    path = folder / LISTS["train"]
    text = path.read_text()
    first = text.splitlines()[0] + "\n"
    if how == "no list":
        path.unlink()
    elif how == "8 bit":
        small = picture_bytes(np.full((32, 48), 9, np.uint8))
        (folder / "sync/office_0001/sync_depth_00000.png").write_bytes(small)
    elif how == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        new = {
            "empty": "\n",
            "columns": first + "a.jpg b.png\n",
            "focal": first + "a.jpg b.png far\n",
            "missing": text + "/attic/rgb_1.jpg /attic/sync_depth_1.png 518.8579\n",
        }
        path.write_text(new[how])
    assert run_prepare("nyu-sync", folder, "--out", tmp_path / "set", "--workers", 1) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        NyuSync(tmp_path / "gone").items()
