"""Depth of a video through ffmpeg: an example that needs run_onnx.py, what that needs, and ffmpeg.

    python export/examples/video.py unet_mobilenet_v3.onnx tour.mp4 depth.mp4

writes a video, without sound, of picture | depth, red near and blue far on the scale of the first frame.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Here run_onnx.py is one folder up; beside this file, Python would find it anyway.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from run_onnx import PROVIDERS, OnnxDepth, OnnxError, Parser, colorize  # type: ignore[import-not-found]

READ = ["-f", "image2pipe", "-c:v", "ppm", "-"]
WRITE = ["-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]  # players want even sizes


def frame_rate(path: Path) -> str:
    """Frames a second, as "30000/1001"; raises OnnxError where there is no video."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=r_frame_rate"]
    probe = subprocess.run([*command, "-of", "json", str(path)], capture_output=True, text=True)
    if not (streams := json.loads(probe.stdout or "{}").get("streams")):
        raise OnnxError(f"{path}: not a video that ffmpeg can read")
    return str(streams[0]["r_frame_rate"])


def frames(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """Pictures, uint8 (H, W, 3), of a stream of PPM files, each "P6", "W H", "255" and the pixels."""
    while stream.readline():
        width, height = map(int, stream.readline().split())
        stream.readline()
        yield np.frombuffer(stream.read(3 * height * width), np.uint8).reshape(height, width, 3)


def convert(model: OnnxDepth, source: Path, target: Path) -> int:
    """Writes the video and returns how many frames it has."""
    start, rate, count, writer = ["ffmpeg", "-v", "error", "-y"], frame_rate(source), 0, None
    read = [*start, "-i", str(source), "-vf", f"fps={rate}", *READ]
    with subprocess.Popen(read, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        assert reader.stdout
        for count, frame in enumerate(frames(reader.stdout), 1):
            depth = model.predict(Image.fromarray(frame))
            if writer is None:
                limits = np.percentile(depth, (1, 99)).tolist()
                shape = ["-s", f"{2 * frame.shape[1]}x{frame.shape[0]}", "-r", rate]
                write = [*start, "-f", "rawvideo", "-pix_fmt", "rgb24", *shape, *WRITE, str(target)]
                writer = subprocess.Popen(write, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            assert writer.stdin
            try:
                writer.stdin.write(np.concatenate([frame, colorize(depth, *limits)], axis=1).tobytes())
            except BrokenPipeError:
                break
            if count % 50 == 0:
                print(f"{count} frames", flush=True)
    errors = writer.communicate()[1].decode().split("\n") if writer else [f"no frame in {source}", ""]
    if len(errors) > 1:
        raise OnnxError(f"ffmpeg: {errors[-2]}")
    return count


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="video", description="Depth of a video through ffmpeg.")
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    args = parser.parse_args(argv)
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        parser.error("no ffmpeg and ffprobe on the PATH: install ffmpeg")
    if not args.source.is_file() or args.source.resolve() == args.target.resolve():
        parser.error(f"{args.source}: {'the target too' if args.source.is_file() else 'no such file'}")
    part = args.target.with_name(f".{args.target.stem}.part{args.target.suffix}")
    try:
        count = convert(OnnxDepth(args.model, args.provider), args.source, part)
        part.replace(args.target)
    except (OnnxError, OSError) as error:
        parser.error(str(error).replace(str(part), str(args.target)))
    except KeyboardInterrupt:
        print("video: interrupted", file=sys.stderr)
        return 130
    finally:
        part.unlink(missing_ok=True)
    print(f"{count} frames -> {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
