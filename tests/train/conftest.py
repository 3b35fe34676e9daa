"""A tiny data set and a tiny .mat, made once."""

import contextlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo.models import create_model
from tests.data_sets import write_random_frames
from train.cards import write_weights
from train.rooms import render
from train.shards import ShardDataset, ShardWriter, write_dataset
from train.sources.nyu_labelled import official_split

METRES_PER_STEP = 9.9955 / 255


def write_mat(path: Path, images: np.ndarray, depths: np.ndarray) -> None:
    """(N, H, W, 3) and (N, H, W) with the axes of the official file."""
    with h5py.File(path, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)


@pytest.fixture(scope="session")
def rooms_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 48x64: 22 train, 1 val, 1 test."""
    out = tmp_path_factory.mktemp("data") / "rooms"
    counts = {"val": 1, "test": 1, "train": 22}
    return write_random_frames(out, (48, 64), counts, "room", source="rooms")


@pytest.fixture(scope="session")
def nyu_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 480x640 that say that they are of NYU Depth V2: 2 val, 2 test, 4 train."""
    out, counts = tmp_path_factory.mktemp("data") / "nyu", {"val": 2, "test": 2, "train": 4}
    camera = {"camera": "Kinect v1", "terms": "research use"}
    return write_random_frames(
        out, (480, 640), counts, "nyu", source="nyu-labelled", truth="filled", **camera
    )


@pytest.fixture(scope="session")
def real_mat(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 real frames in the layout of nyu_depth_v2_labeled.mat."""
    folder = real_data / "nyu_v2_labelled"
    images = np.stack([np.asarray(Image.open(folder / "images" / f"{i:04d}.jpg")) for i in range(60)])
    steps = np.stack([np.asarray(Image.open(folder / "depths" / f"{i:04d}.png")) for i in range(60)])
    path = tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat"
    write_mat(path, images, ((steps + 0.5) * METRES_PER_STEP).astype(np.float32))
    return path


@pytest.fixture(scope="session")
def real_set(real_mat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of those frames, made by the command; train frames at 120x160."""
    from train.arguments import command
    from train.prepare import parser, run

    out = tmp_path_factory.mktemp("data") / "nyu"
    assert (
        command(parser(), run, ["nyu-labelled", str(real_mat), "--out", str(out), "--size", "120x160"]) == 0
    )
    return out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of six rooms of several aspects, as PNG and JPEG."""
    sizes = [(48, 64), (64, 64), (48, 96), (80, 48)]
    path = tmp_path_factory.mktemp("tar") / "rooms.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            kind = ("PNG", "JPEG")[number % 2]
            buffer = io.BytesIO()
            Image.fromarray(render(number, sizes[number % 4]).image).save(buffer, kind)
            member = tarfile.TarInfo(f"attic/{number:05d}.{'png' if kind == 'PNG' else 'jpg'}")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return path


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose depth varies over the picture; working size 64x96."""
    torch.manual_seed(0)
    model = create_model("unet_mobilenet_v3", weights=None)
    with torch.no_grad():
        model.head.conv.weight.mul_(100)
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    card = {"model": model.name, "tag": "test", "arguments": {}, "size": [64, 96], "terms": "of the teacher"}
    write_weights(model, path, card)
    return path


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """Weights as a run leaves them; working size 64x96."""
    torch.manual_seed(0)
    model = create_model("unet", weights=None, width=4)
    path = tmp_path / "some.safetensors"
    card = {"model": model.name, "tag": "nyu", "size": [64, 96], "terms": "of the train data"}
    write_weights(model, path, card)
    return path


@pytest.fixture(scope="session")
def sixty_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 60 steps with two tiny pictures each, a checkpoint after every third."""
    path = tmp_path_factory.mktemp("recipe") / "sixty_steps.toml"
    path.write_text(
        'model = "unet"\nmodel_options = {width = 4}\nsize = [32, 32]\nsteps = 60\nbatch_size = 2\n'
        'precision = "fp32"\nema = 0.9\n'
        "validate_every = 20\ncheckpoint_every = 3\n[loss]\nsilog = 1.0\n"
        "[augment]\nflip = true\nzoom = [0.9, 1.2]\nbrightness = 0.2\n"
    )
    return path


@pytest.fixture(scope="session")
def split() -> dict[str, list[int]]:
    """The official split."""
    return official_split()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def run_prepare() -> Callable[..., int]:
    """``python -m train.prepare`` in this process: its arguments to its exit code."""
    from train.arguments import command
    from train.prepare import parser, run

    return lambda *arguments: command(parser(), run, [str(argument) for argument in arguments])


@pytest.fixture
def picture_bytes() -> Callable[..., bytes]:
    """Encodes an array: a jpg or png picture, or a depth PNG of the array's 8 or 16 bits."""

    def encode(array: np.ndarray, form: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, form)
        return buffer.getvalue()

    return encode


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """uint8 RGB (H, W, 3) that differs from number to number."""
    return lambda number, size=(32, 48): np.random.default_rng(number).integers(
        0, 256, (*size, 3), dtype=np.uint8
    )


@pytest.fixture(scope="session")
def small_shards(rooms_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rooms with 22 train samples in shards of 5, 5, 5, 5 and 2; copy it to change it."""
    out = tmp_path_factory.mktemp("shards")
    splits = {}
    for split in ("train", "val"):
        source = ShardDataset(rooms_set, split)
        with ShardWriter(out, split, samples_per_shard=5) as writer:
            for index, key in enumerate(source.keys):
                image, depth = source.encoded(index)
                writer.write(key, "jpg" if image.startswith(b"\xff\xd8") else "png", image, depth)
        splits[split] = {**source.info["splits"][split], **writer.entry}
    write_dataset(out, splits, source="rooms", terms="MIT")
    return out


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a folder over HTTP on loopback; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> str:
            class Handler(http.server.SimpleHTTPRequestHandler):
                def __init__(self, *arguments: Any) -> None:
                    super().__init__(*arguments, directory=str(folder))

                def log_message(self, *arguments: object) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture
def folder(small_shards: Path, tmp_path: Path) -> Path:
    """A copy of the small shards, to be changed."""
    return Path(shutil.copytree(small_shards, tmp_path / "served"))


@pytest.fixture
def train() -> Callable[..., int]:
    """``python -m train`` in this process: its arguments to its exit code. No report, unless ``report=True``."""
    from train.__main__ import parser, run
    from train.arguments import command

    def launch(*arguments: object, report: bool = False) -> int:
        return command(parser(), run, [*map(str, arguments), *([] if report else ["--no-report"])])

    return launch


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The error of a command, which is the only line on stderr."""

    def read() -> str:
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert ": error: " in line
        return str(line)

    return read


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: small tensors are quicker so, and sums are the same each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
