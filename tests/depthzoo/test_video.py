"""predict_video on videos of known frames, by a model that sees how red they are."""

import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depthzoo.prediction import Predictor
from depthzoo.video import SAMPLES, _spread, predict_video
from depthzoo.visualize import colorize

av = pytest.importorskip("av")
HEIGHT, WIDTH = 64, 96


class Red(nn.Module):
    """1 m where there is no red, 3 m where there is all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return 1 + 2 * image[:, :1]


def run(batch_size: int = 1) -> Predictor:
    return Predictor(Red(), "cpu", (HEIGHT, WIDTH), batch_size=batch_size)


def frame(red: float, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Red at the top; the left half of the bottom is without, the right half with all of it."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = round(255 * red)
    pixels[height // 2 :, width // 2 :, 0] = 255
    return pixels


def write(path: Path, frames: list[np.ndarray], ticks: list[int] | None = None, turn: int = 0) -> Path:
    """Write a video without loss; ``ticks`` are the times of the frames in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "libx264rgb", rate=25)
        stream.pix_fmt = "bgr0" if path.suffix == ".mkv" else "rgb24"
        stream.height, stream.width = frames[0].shape[:2]
        if path.suffix != ".mkv":
            stream.options = {"crf": "0"}
        if ticks:
            stream.codec_context.time_base = Fraction(1, 100)
        if turn:
            stream.set_display_rotation(turn)
        for index, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
            if ticks:
                picture.pts, picture.time_base = ticks[index], Fraction(1, 100)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[list[np.ndarray], list[float], dict[str, str]]:
    """Frames, times in seconds, and metadata."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        pixels = [f.to_ndarray(format="rgb24") for f in frames]
        return pixels, [f.time for f in frames], {k.lower(): v for k, v in container.metadata.items()}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_frames_and_times_are_kept_and_colors_are_those_of_the_depth(
    tmp_path: Path, suffix: str, batch_size: int
) -> None:
    reds, ticks = [0, 0.25, 0.5, 0.75, 1], [0, 4, 8, 40, 44]  # a pause in the middle
    source = write(tmp_path / "a.mkv", [frame(red) for red in reds], ticks)
    predictor, target = run(batch_size), tmp_path / "new" / f"depth{suffix}"
    assert predict_video(predictor, source, target, near=1, far=3) == 5
    frames, times, metadata = read(target)
    assert predictor.model.batches == {1: [1] * 5, 3: [3, 2]}[batch_size]
    np.testing.assert_allclose(np.subtract(times, times[0]), [0, 0.04, 0.08, 0.4, 0.44], atol=0.002)
    assert metadata["comment"] == "depth 1.000 to 3.000 m, turbo_r"
    for pixels, red in zip(frames, reds, strict=True):
        expected = colorize(1 + frame(red)[..., 0] / np.float32(127.5), near=1, far=3)
        # 4:2:0 halves the resolution of colors: compared inside of areas of one color.
        inside = np.s_[8:24:4, 8:40:4]
        np.testing.assert_allclose(pixels[inside].astype(int), expected[inside].astype(int), atol=12)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [target.name]


def test_one_scale_for_the_whole_video(tmp_path: Path) -> None:
    """The same depth has the same color in the first frame and in the last, which alone reaches 3 m."""
    frames = [frame(0.5) for _ in range(5)]
    frames += [np.full((HEIGHT, WIDTH, 3), 255, np.uint8) for _ in range(3)]
    frames[0][...] = frames[0] // 4  # nothing beyond 1.5 m
    write(tmp_path / "a.mkv", frames)
    predict_video(run(), tmp_path / "a.mkv", tmp_path / "b.mkv", colormap="gray")
    shown, _, metadata = read(tmp_path / "b.mkv")
    assert metadata["comment"] == "depth 1.000 to 3.000 m, gray"
    assert abs(int(shown[1][10, 10, 0]) - 128) < 8 and shown[-1].min() > 245 and shown[0].max() < 80


def test_scale_is_taken_from_frames_all_over_the_video() -> None:
    for count in (0, 1, SAMPLES, 2 * SAMPLES, 2 * SAMPLES + 1, 1000, 1024):
        found, kept = _spread(iter(range(count)))  # type: ignore[arg-type]
        assert found == count and min(count, SAMPLES) <= len(kept) <= 2 * SAMPLES
        steps = np.diff(kept)  # type: ignore[arg-type]
        assert len(set(steps)) <= 1 and (count == 0 or count - kept[-1] <= (steps[0] if len(steps) else 1))  # type: ignore[operator]


def test_constant_depth_has_a_scale(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 2)
    assert predict_video(run(), tmp_path / "a.mkv", tmp_path / "b.mp4") == 2


def test_odd_sizes_and_side_by_side(tmp_path: Path) -> None:
    frames = [frame(0.5, 51, 77)] * 2
    write(tmp_path / "a.mkv", frames)
    predict_video(
        run(), tmp_path / "a.mkv", tmp_path / "b.mp4", side_by_side=True, near=1, far=3, colormap="gray"
    )
    shown = read(tmp_path / "b.mp4")[0][0]
    assert shown.shape == (52, 154, 3)
    np.testing.assert_allclose(shown[4:20:4, 4:70:6], frames[0][4:20:4, 4:70:6], atol=12)
    np.testing.assert_allclose(shown[4:20, 84:150, 1], 128, atol=8)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_frames_are_turned_upright(tmp_path: Path, turn: int) -> None:
    upright = frame(1)
    stored = np.rot90(upright, -turn // 90)
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    source = write(tmp_path / "a.mp4", [stored] * 2, turn=turn)
    predict_video(run(), source, tmp_path / "b.mp4", near=1, far=3, colormap="gray")
    shown = read(tmp_path / "b.mp4")[0][0]
    np.testing.assert_allclose(shown[4:-4:8, 4:-4:8, 0], upright[4:-4:8, 4:-4:8, 0], atol=12)


def test_focal_length_scales_depth(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 2)
    focal = 2 * 518.86 * WIDTH / 640
    scale: dict[str, Any] = {"near": 1, "far": 3, "colormap": "gray"}
    for camera in ({"focal_px": focal}, {"fov": math.degrees(2 * math.atan(WIDTH / 2 / focal))}):
        predict_video(run(), tmp_path / "a.mkv", tmp_path / "b.mp4", **scale, **camera)
        np.testing.assert_allclose(read(tmp_path / "b.mp4")[0][0], 128, atol=4)


def test_bar_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.mkv", [frame(0.5)] * 3)
    predict_video(run(), tmp_path / "a.mkv", tmp_path / "b.mp4")
    assert not capsys.readouterr().err
    predict_video(run(), tmp_path / "a.mkv", tmp_path / "b.mp4", progress=True)
    assert "3/3" in capsys.readouterr().err


def test_damaged_parts_are_left_out(tmp_path: Path) -> None:
    write(
        tmp_path / "a.mkv",
        [np.random.default_rng(i).integers(0, 255, (64, 96, 3), np.uint8) for i in range(8)],
    )
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    count = predict_video(run(), tmp_path / "cut.mkv", tmp_path / "b.mp4", near=1, far=3)
    assert 2 <= count <= 5 and len(read(tmp_path / "b.mp4")[0]) == count


@pytest.mark.parametrize(
    ("source", "target", "options", "kind", "message"),
    [
        (
            "absent.mkv",
            "b.mp4",
            {},
            FileNotFoundError,
            r"absent\.mkv: cannot be read as a video: No such file",
        ),
        ("text.mp4", "b.mp4", {}, ValueError, r"text\.mp4: cannot be read as a video: Invalid data"),
        ("sound.wav", "b.mp4", {}, ValueError, r"sound\.wav: holds no video"),
        ("cut.mkv", "b.mp4", {}, ValueError, r"cut\.mkv: no frame of it can be decoded"),
        ("cut.mkv", "b.mp4", {"near": 1, "far": 3}, ValueError, r"cut\.mkv: no frame of it can be decoded"),
        ("a.mkv", "b.mp4", {"near": 5}, ValueError, "near must be below far, got 5 and 3 m"),
        ("a.mkv", "b.avi", {}, ValueError, r"b\.avi: the name must end in \.mp4 or \.mov or \.mkv"),
        ("a.mkv", "a.mkv", {}, ValueError, r"a\.mkv: is both source and target"),
        ("a.mkv", "b.mp4", {"colormap": "turboo"}, ValueError, "did you mean 'turbo'"),
        ("a.mkv", "b.mp4", {"near": 3, "far": 1}, ValueError, "near must be below far, got 3 and 1 m"),
        ("a.mkv", "b.mp4", {"focal_px": -1.0}, ValueError, "focal_px must be a positive number"),
    ],
)
def test_what_cannot_be_done_leaves_no_file(
    tmp_path: Path, source: str, target: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    write(tmp_path / "a.mkv", [frame(0.5)] * 2)
    before = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "cut.mkv").write_bytes(before[:600])  # the header alone
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(kind, match=message) as error:
        predict_video(run(), tmp_path / source, tmp_path / target, **options)
    assert len(str(error.value).splitlines()) == 1
    assert (tmp_path / "a.mkv").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.mkv", "cut.mkv", "text.mp4", "sound.wav"}


def test_interrupted_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", [frame(0.5)] * 4)
    predictor = run()

    def stop(image: Tensor) -> Tensor:
        if len(predictor.model.batches) == 2:
            raise KeyboardInterrupt
        predictor.model.batches.append(1)
        return torch.ones_like(image[:, :1])

    predictor.model.forward = stop
    with pytest.raises(KeyboardInterrupt):
        predict_video(predictor, tmp_path / "a.mkv", tmp_path / "b.mp4", near=1, far=3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


def test_pyav_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="^videos need PyAV: pip install av$"):
        predict_video(run(), "a.mkv", tmp_path / "b.mp4")
