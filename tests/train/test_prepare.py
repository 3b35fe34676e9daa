"""From the sources to shards."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthzoo.camera import depth_scale
from train.arguments import command
from train.encoding import check_medians
from train.prepare import check_unit, parser, resize_frame, run, write
from train.shards import ShardDataset
from train.sources.frames import Frame, FrameError, SourceError
from train.sources.nyu_labelled import official_split


def prepare(*arguments: object) -> int:
    return command(parser(), run, [str(argument) for argument in arguments])


def test_split_is_the_official_one_with_whole_scenes_held_out(
    split: dict[str, list[int]], real_data: Path
) -> None:
    official = json.loads((real_data / "nyu_v2_labelled" / "splits.json").read_text())
    assert sorted(split["train"] + split["val"]) == official["train"]
    assert split["test"] == official["test"]
    assert (len(split["train"]), len(split["val"]), len(split["test"])) == (700, 95, 654)
    # Neighbours in the official train list share a scene: none may be in train and the other in val.
    train, val = set(split["train"]), set(split["val"])
    assert not any(number + 1 in val or number - 1 in val for number in train)


def test_every_frame_is_in_one_split(split: dict[str, list[int]]) -> None:
    assert sorted(split["train"] + split["val"] + split["test"]) == list(range(1449))


def test_real_frames_come_out_upright_and_in_metres(real_set: Path, real_data: Path) -> None:
    """A wrong transpose or a lost scale shows against the original files."""
    folder = real_data / "nyu_v2_labelled"
    test = ShardDataset(real_set, "test")
    assert test.keys == [f"nyu-{number:04d}" for number in official_split()["test"] if number < 60]
    for index in (0, len(test) - 1):
        number = int(test.keys[index].removeprefix("nyu-"))
        image, depth = test[index]
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / "images" / f"{number:04d}.jpg")))
        steps = np.asarray(Image.open(folder / "depths" / f"{number:04d}.png"))
        np.testing.assert_allclose(depth / 1000, (steps + 0.5) * 9.9955 / 255, atol=6e-4)


def test_only_train_frames_are_resized_and_cropped(real_set: Path) -> None:
    train, test = ShardDataset(real_set, "train"), ShardDataset(real_set, "test")
    assert train[0][0].shape == (120, 160, 3) and test[0][0].shape == (480, 640, 3)
    assert test.focal_px == 518.86
    assert train.focal_px == pytest.approx(518.86 * 120 / 464)
    # The border of the labelled frames is white, and no train frame has it.
    edges = [train[i][0][[0, -1]].mean() for i in range(len(train))] + [
        train[i][0][:, [0, -1]].mean() for i in range(len(train))
    ]
    assert max(edges) < 240
    assert test[0][0][0].mean() > 250


def test_info_says_what_it_is(real_set: Path) -> None:
    info = ShardDataset(real_set, "test").info
    assert info["source"] == "nyu-labelled" and info["truth"] == "filled" and "research" in info["terms"]


def test_rooms_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("rooms", "--count", 5, "--size", "32x48", "--out", tmp_path / "rooms") == 0
    assert "3 train" in capsys.readouterr().out
    image, depth = ShardDataset(tmp_path / "rooms", "train")[0]
    assert image.shape == (32, 48, 3) and 300 < np.median(depth) < 10000


def test_writing_twice_gives_the_same_digests(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert prepare("rooms", "--count", 4, "--size", "32x32", "--out", tmp_path / name) == 0
    a, b = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("a", "b"))
    assert a["splits"] == b["splits"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"not an HDF5 file", "not an HDF5"),
    ],
)
def test_bad_mat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    path = tmp_path / "nyu.mat"
    if content is not None:
        path.write_bytes(content)
    assert prepare("nyu-labelled", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_raw_depth_that_is_not_there(
    real_mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare("nyu-labelled", real_mat, "--depth", "raw", "--out", tmp_path / "out") == 2
    assert "rawDepths" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    assert prepare("rooms", "--count", 4, "--out", tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_a_failure_half_way_leaves_the_old_set_whole(tmp_path: Path) -> None:
    out = tmp_path / "set"
    frame = Frame("train", "a", np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 2.0), 100.0)
    write(iter([frame]), 1, out, None, source="x")

    def broken():
        yield frame
        raise OSError("the disk fell off")

    with pytest.raises(OSError, match="fell off"):
        write(broken(), 2, out, None, source="y")
    assert ShardDataset(out, "train").info["source"] == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(("factor", "scale"), [(1000.0, "0.001"), (0.001, "1000"), (100.0, "0.01")])
def test_depth_in_another_unit_is_refused_with_the_likely_scale(factor: float, scale: str) -> None:
    frame = Frame("train", "k", np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 2.5 * factor), 100.0)
    with pytest.raises(SourceError, match=f"likely scale is {scale}$"):
        check_unit(frame)


def test_resize_keeps_depth_values_and_scales_the_focal_length() -> None:
    depth = np.where(np.arange(64)[None] < 32, 1.0, 5.0) * np.ones((48, 1))
    frame = resize_frame(Frame("train", "k", np.zeros((48, 64, 3), np.uint8), depth, 80.0), (24, 32))
    assert frame.focal_px == 40.0 and frame.image.shape == (24, 32, 3)
    assert set(np.unique(frame.depth)) == {1.0, 5.0}


def test_a_picture_is_not_squeezed() -> None:
    """A square of the picture stays one, the middle is kept, and what is cut off is little."""
    image = np.zeros((100, 308, 3), np.uint8)
    image[20:60, 120:160] = 255
    depth = np.where(image[..., 0] > 0, 5.0, 2.0)
    frame = resize_frame(Frame("train", "k", image, depth, 200.0), (50, 150))  # two pixels cut at each end
    assert frame.image.shape == (50, 150, 3) and frame.focal_px == 100.0
    rows, columns = np.nonzero(frame.image[..., 0] > 128)
    assert (np.ptp(rows), np.ptp(columns)) == (19, 19)
    assert (rows.min(), columns.min()) == (10, 58)
    rows, columns = np.nonzero(frame.depth == 5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 58, 77)


def test_a_camera_keeps_its_scale_of_depth_at_another_size() -> None:
    frame = Frame("train", "k", np.zeros((464, 622, 3), np.uint8), np.ones((464, 622)), 518.86)
    small = resize_frame(frame, (288, 384))
    assert depth_scale(small.focal_px, 384) == pytest.approx(depth_scale(518.86, 384 * 464 / 288))


@pytest.mark.parametrize(
    ("shape", "size", "whole"),
    [
        ((375, 1242), (288, 384), (183, 605)),
        ((464, 622), (256, 256), (221, 296)),
        ((64, 48), (24, 32), (32, 24)),
    ],
)
def test_a_size_that_cuts_much_off_is_refused_with_one_that_does_not(
    shape: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]
) -> None:
    frame = Frame("train", "k", np.zeros((*shape, 3), np.uint8), np.ones(shape), 100.0)
    with pytest.raises(FrameError, match=f"--size {whole[0]}x{whole[1]} keeps it whole$"):
        resize_frame(frame, size)
    assert resize_frame(frame, whole).image.shape[:2] == whole


@pytest.mark.parametrize(("median", "far"), [(41.78, 80.0), (1.5, 80.0), (0.1, 1.0), (2.5, 10.0)])
def test_a_median_is_plausible_where_the_range_says_so(median: float, far: float) -> None:
    check_medians([median], "frames", depth_range=(0.001, far))


def test_far_depth_is_not_taken_for_another_unit_only() -> None:
    with pytest.raises(
        SourceError, match=r"20 expected of depth up to 10 m\); if that range \(--max-depth\) is"
    ):
        check_medians([41.78], "frames", 1 / 256)
    with pytest.raises(SourceError, match=r"likely scale is 0\.001$"):
        check_medians([15_000.0], "frames", depth_range=(0.001, 80.0))
