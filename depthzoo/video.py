"""Predict the depth of a video. Needs PyAV: pip install av."""

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from depthzoo.errors import reworded
from depthzoo.files import atomic_write
from depthzoo.images import Pixels
from depthzoo.prediction import Focal, Prediction, Predictor
from depthzoo.visualize import DEFAULT_COLORMAP, colorize, colormap_lut, percentile_range

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
SAMPLES = 16  # at least so many frames of a longer video give the color scale
BT709 = 1  # the color space that players expect
CLOCK = 90_000  # ticks a second, as in MPEG


def predict_video(
    predictor: Predictor,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    colormap: str = DEFAULT_COLORMAP,
    near: float | None = None,
    far: float | None = None,
    focal_px: Focal = None,
    fov: float | None = None,
    side_by_side: bool = False,
    progress: bool | None = None,
) -> int:
    """Write a video of the colored depth of each frame of a video.

    Each frame is predicted by itself. One color scale holds for the whole video; the file's comment states it. The
    frames keep their size and their times; the sound is left out.

    Args:
        predictor: predicts ``predictor.batch_size`` frames at a time.
        source: a video that FFmpeg reads.
        target: the file to write, .mp4, .mov or .mkv, with H.264.
        colormap: one of ``depthzoo.colormaps.COLORMAPS``.
        near, far: metres of the first and last color; by default the 1st and 99th percentile of frames that are spread
            over the video, for which it is read twice.
        focal_px, fov: focal length in pixels, or field of view in degrees, of the frames; see
            :class:`depthzoo.Predictor`.
        side_by_side: draw each frame to the left of its depth.
        progress: show a progress bar; if None, only when stderr is a terminal.

    Returns:
        The number of frames.

    Raises:
        ImportError: if PyAV is not installed.
        OSError: if a file cannot be opened or written.
        ValueError: if ``source`` is not a video, ``target`` has another suffix or is ``source``, near is not below far,
            or for an unknown colormap or a bad focal length.
    """
    try:
        import av
    except ImportError:
        raise ImportError("videos need PyAV: pip install av") from None

    source, target = (Path(os.path.expanduser(path)) for path in (source, target))
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"{target}: the name must end in {' or '.join(FORMATS)}")
    if source.resolve() == target.resolve():
        raise ValueError(f"{source}: is both source and target")
    colormap_lut(colormap)  # raises for an unknown one before the work
    with _open(source) as opened:
        rate = opened.streams.video[0].average_rate or 30
    hidden = None if progress is None else not progress  # None: unless stderr is a terminal
    total = None
    if near is None or far is None:
        total, samples = _spread(tqdm(_frames(source), "color scale", unit="frame", disable=hidden))
        depths = [predictor(_pixels(frame), focal_px, fov=fov).depth for frame in samples]
        low, high = percentile_range(*depths) if depths else (0.0, 1.0)
        if near is None and far is None:
            high = max(high, low + 1e-3)  # a scale for a constant depth
        near, far = low if near is None else near, high if far is None else far
    frames = tqdm(_frames(source), "depth", total, unit="frame", disable=hidden)
    pictures = (
        (np.concatenate([p.image, colors], axis=1) if side_by_side else colors, frame.time)
        for frame, p in _predict(predictor, frames, focal_px, fov)
        for colors in [colorize(p.depth, colormap, near, far)]
    )
    comment = f"depth {near:.3f} to {far:.3f} m, {colormap}"
    with atomic_write(target) as temporary:
        try:
            count = _write(temporary, FORMATS[target.suffix.lower()], pictures, rate, comment)
        except av.FFmpegError as error:
            raise OSError(f"{target}: {error.strerror}") from None
        if not count:
            raise ValueError(f"{source}: no frame of it can be decoded")
    return count


def _write(
    path: Path, kind: str, pictures: Iterable[tuple[Pixels, float | None]], rate: Fraction | int, comment: str
) -> int:
    """Encode pictures with their times in seconds, and return how many they are."""
    import av

    stream, count, last = None, 0, -1
    with av.open(str(path), "w", format=kind) as container:
        container.metadata["comment"] = comment
        for pixels, time in pictures:
            odd = [(0, side % 2) for side in pixels.shape[:2]]
            even = np.pad(pixels, [*odd, (0, 0)], "edge")  # H.264 needs even sides
            if stream is None:
                stream = container.add_stream("libx264", rate, {"crf": "18"})
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, CLOCK)
                stream.colorspace = stream.color_primaries = stream.color_trc = BT709
            frame = av.VideoFrame.from_ndarray(even).reformat(format="yuv420p", dst_colorspace=BT709)
            last = max(last + 1, round((count / rate if time is None else time) * CLOCK))
            frame.pts, frame.time_base = last, Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
            count += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _open(path: Path) -> "InputContainer":
    import av

    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        text = f"{path}: cannot be read as a video: {error.strerror}"
        raise (reworded(error, text) if isinstance(error, OSError) else ValueError(text)) from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: holds no video")
    return container


def _frames(path: Path) -> Iterator["VideoFrame"]:
    """Decode a video. Damaged parts are left out, with a warning."""
    import av

    damaged = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"  # decodes with all cores
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            yield from frames
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged packets are left out", stacklevel=2)


def _spread(frames: Iterable["VideoFrame"]) -> tuple[int, list["VideoFrame"]]:
    """Count the frames and take SAMPLES to twice as many of them, at equal distances."""
    kept: list[VideoFrame] = []
    step, count = 1, 0
    for frame in frames:
        if count % step == 0:
            kept.append(frame)
        if len(kept) == 2 * SAMPLES:
            kept, step = kept[::2], 2 * step
        count += 1
    return count, kept


def _predict(
    predictor: Predictor, frames: Iterable["VideoFrame"], focal_px: Focal, fov: float | None
) -> Iterator[tuple["VideoFrame", Prediction]]:
    frames = iter(frames)
    while batch := list(itertools.islice(frames, predictor.batch_size)):
        yield from zip(batch, predictor([_pixels(frame) for frame in batch], focal_px, fov=fov), strict=True)


def _pixels(frame: "VideoFrame") -> Pixels:
    """The upright frame, (H, W, 3) RGB. Phones store frames as the sensor has them, and by how much to turn them."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
