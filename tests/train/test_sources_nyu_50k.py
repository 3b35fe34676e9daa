"""The 50K set: zip and folder, 8-bit train depth, 16-bit test depth, whole scenes held out."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.shards import ShardDataset
from train.sources.nyu_50k import Nyu50k

SCENES = ("kitchen_0001a_out", "kitchen_0001b_out", "bedroom_0002_out", "study_0003_out")
Encode = Callable[..., bytes]
Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, picture_bytes: Encode, noise: Callable[..., np.ndarray]) -> Path:
    """3 frames in each of 4 folders (3 scenes), and 2 test frames."""
    root = tmp_path / "nyu"
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for place, scene in enumerate(SCENES):
        for number in range(1, 4):
            path = f"data/nyu2_train/{scene}/{number}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{path}.jpg").write_bytes(picture_bytes(noise(10 * place + number), "JPEG"))
            depth = np.full((32, 48), 51, np.uint8)  # 2 m
            depth[0, 0], depth[0, 1], depth[31, 47] = 0, 255, 100 + number
            (root / f"{path}.png").write_bytes(picture_bytes(depth))
            rows["train"].append(f"{path}.jpg,{path}.png")
    for number in (0, 8):
        path = f"data/nyu2_test/{number:05d}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{path}_colors.png").write_bytes(picture_bytes(noise(100 + number)))
        millimetres = np.full((32, 48), 2345 + number, np.uint16)
        (root / f"{path}_depth.png").write_bytes(picture_bytes(millimetres))
        rows["test"].append(f"{path}_colors.png,{path}_depth.png")
    for split, lines in rows.items():
        (root / "data" / f"nyu2_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def pack(folder: Path) -> Path:
    path = folder.parent / "nyu_data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_depth_and_bytes(folder: Path, tmp_path: Path, run_prepare: Run) -> None:
    assert run_prepare("nyu-50k", folder, "--out", tmp_path / "set") == 0
    train, test = ShardDataset(tmp_path / "set", "train"), ShardDataset(tmp_path / "set", "test")
    index = train.keys.index("nyu2_train-study_0003_out-2")
    depth = train[index][1]
    assert depth[5, 5] == 2000 and depth[0, 0] == 0 and depth[0, 1] == 10000
    assert depth[31, 47] == 4000  # 102 / 255 * 10 m
    original = folder / "data/nyu2_train/study_0003_out/2.jpg"
    assert train.encoded(index)[0] == original.read_bytes()
    assert test.keys == ["nyu2_test-00000", "nyu2_test-00008"]
    picture, depth_file = test.encoded(1)
    assert picture == (folder / "data/nyu2_test/00008_colors.png").read_bytes()
    assert depth_file == (folder / "data/nyu2_test/00008_depth.png").read_bytes()
    assert (test[1][1] == 2353).all()
    assert train.focal_px == pytest.approx(518.86 * 48 / 640)


def test_val_is_whole_scenes_and_parts_of_a_scene_stay_together(folder: Path) -> None:
    items = Nyu50k(folder).items()
    scenes = {
        split: {item.key.split("-")[1].split("_out")[0].rstrip("ab") for item in items if item.split == split}
        for split in ("train", "val")
    }
    assert len(scenes["val"]) == 1 and len(scenes["train"]) == 2
    assert not scenes["val"] & scenes["train"]
    assert [item.key for item in items] == [item.key for item in Nyu50k(folder).items()]


def test_zip_folder_and_data_folder_give_the_same_shards(
    folder: Path, tmp_path: Path, run_prepare: Run
) -> None:
    for name, path in (("a", pack(folder)), ("b", folder), ("c", folder / "data")):
        assert run_prepare("nyu-50k", path, "--out", tmp_path / name, "--size", "40x60", "--workers", 1) == 0
    a, b, c = (json.loads((tmp_path / n / "dataset.json").read_text())["splits"] for n in "abc")
    assert a == b == c
    assert a["train"]["size"] == [40, 60] and a["test"]["size"] == [32, 48] and a["val"]["size"] == [32, 48]


def test_border_of_full_frames_has_no_depth(
    folder: Path, tmp_path: Path, run_prepare: Run, picture_bytes: Encode, noise: Callable[..., np.ndarray]
) -> None:
    """Train frames keep their bytes, or are cropped where they are resized; test frames stay whole."""
    for path in folder.rglob("*.*"):
        if path.suffix in (".jpg", ".png"):
            if "_depth" in path.name:
                path.write_bytes(picture_bytes(np.full((480, 640), 2000, np.uint16)))
            elif path.suffix == ".jpg" or "_colors" in path.name:
                path.write_bytes(picture_bytes(np.zeros((480, 640, 3), np.uint8), "JPEG"))
            else:
                path.write_bytes(picture_bytes(np.full((480, 640), 51, np.uint8)))
    assert run_prepare("nyu-50k", folder, "--out", tmp_path / "set") == 0
    image, depth = ShardDataset(tmp_path / "set", "train")[0]
    assert image.shape == (480, 640, 3)
    rows, columns = np.nonzero(depth)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 471, 9, 630)
    assert (ShardDataset(tmp_path / "set", "test")[0][1] == 2000).all()
    assert (ShardDataset(tmp_path / "set", "val")[0][1] == 2000).all()
    assert run_prepare("nyu-50k", folder, "--out", tmp_path / "small", "--size", "48x64") == 0
    small = ShardDataset(tmp_path / "small", "train")
    assert (small[0][1] == 2000).all() and small.focal_px == pytest.approx(518.86 * 48 / 464)


def damage(folder: Path, how: str) -> Path:
    """Makes the source wrong in one way; the path to give."""
    train, test = folder / "data/nyu2_train.csv", folder / "data/nyu2_test.csv"
    if how == "cut short":
        path = pack(folder)
        path.write_bytes(path.read_bytes()[:-200])
        return path
    if how == "not a zip":
        path = folder.parent / "nyu_data.zip"
        path.write_bytes(b"<html>404</html>")
        return path
    if how == "damaged member":
        path = pack(folder)
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("data/nyu2_train/study_0003_out/2.jpg").header_offset + 120
        content = bytearray(path.read_bytes())
        content[at : at + 40] = bytes(40)
        path.write_bytes(content)
        return path
    if how == "no list":
        train.unlink()
    elif how == "empty list":
        test.write_text("")
    elif how == "columns":
        train.write_text(train.read_text() + "data/a.jpg\n")
    elif how == "missing file":
        (folder / "data/nyu2_train/study_0003_out/2.png").unlink()
    elif how == "not a picture":
        (folder / "data/nyu2_train/study_0003_out/2.jpg").write_bytes(b"no picture")
    elif how == "8-bit test":
        shutil.copy(
            folder / "data/nyu2_train/study_0003_out/2.png", folder / "data/nyu2_test/00000_depth.png"
        )
    elif how == "gone":
        shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut short", "not a zip file, or cut short"),
        ("not a zip", "expected nyu_data.zip"),
        ("damaged member", "2.jpg"),
        ("no list", "has no data/nyu2_train.csv"),
        ("empty list", "no test frames"),
        ("columns", "row 13: 1 columns; expected picture,depth"),
        ("missing file", "study_0003_out/2.png; nyu2_train.csv row 11 names it"),
        ("not a picture", "study_0003_out/2.jpg: cannot be decoded: not a picture"),
        ("8-bit test", "00000_depth.png: depth of 8 bits"),
        ("gone", "no such file or folder"),
    ],
)
def test_bad_source(
    folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    path = damage(folder, how)
    assert run_prepare("nyu-50k", path, "--out", tmp_path / "set", "--workers", 1) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "frame/s" not in line and "error" in line]
    assert len(lines) == 1 and says in lines[0] and "Traceback" not in error
    assert not (tmp_path / "set").exists()
    # Only finished shards are worth keeping, and the person is told.
    assert (tmp_path / "set.part").exists() == ("keeps the finished shards" in error) == (how == "8-bit test")


def test_a_missing_file_is_skipped_within_the_share(
    folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damage(folder, "missing file")
    assert run_prepare("nyu-50k", path, "--out", tmp_path / "set", "--max-bad", "0.1") == 0
    assert "skipped" in capsys.readouterr().err
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert len(info["skipped"]) == 1 and "study_0003_out-2" in info["skipped"][0]
    assert sum(entry["count"] for entry in info["splits"].values()) == 13
