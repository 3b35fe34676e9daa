"""HDF5 frames: loose, in tars with folders, in flat tars."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from train.shards import ShardDataset
from train.sources.frames import SourceError
from train.sources.nyu_h5 import NyuH5

Run = Callable[..., int]


def frame(number: int, **arrays: np.ndarray | None) -> bytes:
    rgb = np.random.default_rng(number).integers(0, 256, (3, 32, 48), dtype=np.uint8)
    depth = np.full((32, 48), 1 + number / 8, np.float32)
    depth[3, 7] = np.nan
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in ({"rgb": rgb, "depth": depth} | arrays).items():
            if array is not None:
                file[name] = array
    return buffer.getvalue()


def names() -> dict[str, list[str]]:
    scenes = ("basement_0001a", "basement_0001b", "cafe_0002", "dining_room_0003")
    return {
        "train": [f"train/{scene}/{number:05d}.h5" for scene in scenes for number in (1, 2)],
        "val": ["val/official/00001.h5", "val/official/00002.h5"],
    }


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    root = tmp_path / "nyudepthv2"
    for number, name in enumerate(names()["train"] + names()["val"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(frame(number))
    return root


def pack(root: Path, out: Path, flat: bool = False) -> Path:
    """Two tars of train and one of val."""
    out.mkdir()
    train, val = names()["train"], names()["val"]
    for name, members in (("train-000000", train[:4]), ("train-000001", train[4:]), ("val-000000", val)):
        with tarfile.open(out / f"{name}.tar", "w") as tar:
            for number, member in enumerate(members):
                tar.add(root / member, f"{number:05d}.h5" if flat else member)
    return out


def test_values(loose: Path, tmp_path: Path, run_prepare: Run) -> None:
    assert run_prepare("nyu-h5", loose, "--out", tmp_path / "set", "--workers", 1) == 0
    test = ShardDataset(tmp_path / "set", "test")
    assert test.keys == ["official-00001", "official-00002"]
    image, depth = test[1]  # frame 9
    expected = np.random.default_rng(9).integers(0, 256, (3, 32, 48), dtype=np.uint8)
    np.testing.assert_array_equal(image, expected.transpose(1, 2, 0))
    assert depth[3, 7] == 0 and depth[0, 0] == 2125


def test_loose_and_tars_give_the_same_samples(loose: Path, tmp_path: Path, run_prepare: Run) -> None:
    tars = pack(loose, tmp_path / "tars")
    for name, path in (("a", loose), ("b", tars)):
        assert run_prepare("nyu-h5", path, "--out", tmp_path / name, "--workers", 1) == 0
    a, b = (json.loads((tmp_path / name / "dataset.json").read_text())["splits"] for name in "ab")
    assert a == b


@pytest.mark.parametrize("flat", [False, True])
def test_val_is_whole_scenes_or_whole_tars(loose: Path, tmp_path: Path, flat: bool) -> None:
    source = NyuH5(pack(loose, tmp_path / "tars", flat))
    groups: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for item in source.items():
        groups[item.split].add(item.key.rsplit("-", 1)[0].rstrip("ab"))
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]
    assert groups["test"] == {"val-000000" if flat else "official"}


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nyudepthv2.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match="unpack it first"):
        NyuH5(tmp_path).items()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (b"no HDF5", "not an HDF5 file"),
        (frame(1)[:2000], "not an HDF5 file, or cut short"),
        (frame(1, depth=None), "has no array 'depth'; it has rgb"),
        (frame(1, depth=np.ones((48, 32))), "expected (3, H, W) uint8, (H, W)"),
        (frame(1, rgb=np.zeros((32, 48, 3), np.uint8)), "rgb (32, 48, 3) uint8"),
    ],
)
def test_bad_frame(
    loose: Path,
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    change: bytes,
    says: str,
) -> None:
    (loose / "train/cafe_0002/00001.h5").write_bytes(change)
    assert run_prepare("nyu-h5", loose, "--out", tmp_path / "set", "--workers", 1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error and "cafe_0002-00001" in error
    assert not (tmp_path / "set").exists()


def test_bad_tars(loose: Path, tmp_path: Path) -> None:
    tars = pack(loose, tmp_path / "tars")
    path = tars / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"train-000001\.tar: not an uncompressed tar, or cut short"):
        NyuH5(tars).items()
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(SourceError, match="not an uncompressed tar"):
        NyuH5(tars).items()


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        NyuH5(tmp_path / "gone").items()
    with pytest.raises(SourceError, match=r"has no \.h5 files; expected folders train/ and val/"):
        NyuH5(tmp_path).items()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.h5").write_bytes(frame(1))
    with pytest.raises(SourceError, match="has no train frames"):
        NyuH5(tmp_path).items()
    (tmp_path / "2.h5").write_bytes(frame(1))
    with pytest.raises(SourceError, match="neither in train nor in val"):
        NyuH5(tmp_path).items()
