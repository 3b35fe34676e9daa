"""Predict the depth of a video with ffmpeg. Copy this file and run_onnx.py into one folder.

    PYTHONPATH=export python export/examples/video.py unet_mobilenet_v3.onnx tour.mp4 depth.mp4

writes a video, without sound, of image | depth: red near and blue far, on the scale of the first frame.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from run_onnx import PROVIDERS, OnnxDepth, OnnxError, colorize  # type: ignore[import-not-found]

FFMPEG = ["ffmpeg", "-v", "error", "-y"]
READ = ["-f", "image2pipe", "-c:v", "ppm", "-"]
WRITE = ["-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]  # players need even sizes


def frame_rate(path: Path) -> str:
    """Return the frames per second, as "30000/1001"."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=r_frame_rate"]
    probe = subprocess.run([*command, "-of", "json", str(path)], capture_output=True, text=True)
    if not (streams := json.loads(probe.stdout or "{}").get("streams")):
        raise OnnxError(f"{path}: not a video that ffmpeg can read")
    return str(streams[0]["r_frame_rate"])


def frames(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """Read uint8 (H, W, 3) images from a stream of PPM files: "P6", "W H", "255" and the pixels."""
    while stream.readline():
        width, height = map(int, stream.readline().split())
        stream.readline()
        yield np.frombuffer(stream.read(3 * height * width), np.uint8).reshape(height, width, 3)


def convert(model: OnnxDepth, source: Path, target: Path) -> int:
    """Write the video and return the number of frames."""
    rate, count, writer = frame_rate(source), 0, None
    read = [*FFMPEG, "-i", str(source), "-vf", f"fps={rate}", *READ]
    with subprocess.Popen(read, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        assert reader.stdout
        for frame in frames(reader.stdout):
            depth = model.predict(Image.fromarray(frame))
            if writer is None:
                limits = np.percentile(depth, (1, 99)).tolist()
                shape = ["-s", f"{2 * frame.shape[1]}x{frame.shape[0]}", "-r", rate]
                write = [*FFMPEG, "-f", "rawvideo", "-pix_fmt", "rgb24", *shape, *WRITE, str(target)]
                writer = subprocess.Popen(write, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            assert writer.stdin
            try:
                writer.stdin.write(np.concatenate([frame, colorize(depth, *limits)], axis=1).tobytes())
            except BrokenPipeError:
                break
            count += 1
    errors = writer.communicate()[1].decode().strip() if writer else f"no frame in {source}"
    if errors:
        raise OnnxError(f"ffmpeg: {errors.splitlines()[-1]}")
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="video", description="Predict the depth of a video with ffmpeg.")
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    args = parser.parse_args(argv)
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        parser.error("ffmpeg and ffprobe are not on the PATH: install ffmpeg")
    if args.source.resolve() == args.target.resolve():
        parser.error(f"{args.source} is both source and target")
    part = args.target.with_name(f".{args.target.stem}.part{args.target.suffix}")
    try:
        count = convert(OnnxDepth(args.model, args.provider), args.source, part)
        part.replace(args.target)
    except (OnnxError, OSError) as error:
        print(f"video: error: {error}", file=sys.stderr)
        return 2
    finally:
        part.unlink(missing_ok=True)
    print(f"{count} frames -> {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
