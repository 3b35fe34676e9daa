"""What only a GPU can show: metres of the CPU in PyTorch and exported files, and frames cached on the device."""

from pathlib import Path

import numpy as np
import pytest
import torch

import depthzoo
from benchmarks import latency, train_speed
from depthzoo.models import DepthModel
from export.pictures import load_pictures, network_input
from export.run_onnx import OnnxDepth
from export.to_onnx import export_onnx
from train import records
from train.arguments import command
from train.augment import augment
from train.codec import encode_depth, encode_image
from train.config import AugmentConfig
from train.data import ShuffledFrames
from train.frames import decode_frames
from train.rooms import render
from train.shards import ShardDataset, ShardWriter, write_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
SIZE = (192, 256)


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return depthzoo.create_model("unet_mobilenet_v3").eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.concatenate([network_input(picture, SIZE, True) for picture in load_pictures(None, 2)])


@pytest.fixture(scope="module")
def metres(model: DepthModel, images: np.ndarray) -> np.ndarray:
    """On the CPU, in float32."""
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def test_eager_gives_the_metres_of_the_cpu(images: np.ndarray, metres: np.ndarray) -> None:
    model = depthzoo.create_model("unet_mobilenet_v3").eval().to(GPU)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        depth = model(torch.from_numpy(images).to(GPU)).cpu().numpy()
    np.testing.assert_allclose(depth, metres, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_file_gives_the_metres_of_the_cpu(
    precision: str, model: DepthModel, images: np.ndarray, metres: np.ndarray, tmp_path: Path
) -> None:
    export_onnx(model, tmp_path / "model.onnx", precision=precision)
    depth = OnnxDepth(tmp_path / "model.onnx", "cuda", SIZE, options={"use_tf32": 0}).run(images)
    difference = np.abs(depth - metres)
    if precision == "fp32":
        assert difference.max() < 1e-3
    else:
        assert difference.mean() < 2e-3 and np.quantile(difference, 0.999) < 2e-2 and difference.max() < 0.1


@pytest.mark.slow
def test_a_uint8_file_runs(model: DepthModel, tmp_path: Path) -> None:
    export_onnx(model, tmp_path / "model.onnx", uint8=True)
    options = {"session.disable_cpu_ep_fallback": 0}
    on_gpu, on_cpu = (
        OnnxDepth(tmp_path / "model.onnx", provider, options=extra).run(load_pictures(None, 1)[0][None])
        for provider, extra in (("cuda", options), ("cpu", {}))
    )
    assert np.abs(on_gpu - on_cpu).mean() < 1e-2


def test_frames_cached_on_the_device_are_augmented_alike(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        for seed in range(4):
            room = render(seed, (48, 64))
            writer.write(f"r{seed}", *encode_image(room.image), encode_depth(room.depth))
    write_dataset(tmp_path, {"train": {**writer.entry, "size": [48, 64], "focal_px": room.camera.focal_px}})
    data, config = ShardDataset(tmp_path, "train"), AugmentConfig(flip=True, zoom=(0.95, 1.2), rotate=4.0)
    batches = [
        ShuffledFrames(decode_frames(data, GPU, cache=cache), seed=0).batch(0, 4)
        for cache in ("ram", "device")
    ]
    assert [batch.image.device.type for batch in batches] == ["cpu", "cuda"]
    for host, device in zip(*(augment(batch, (48, 64), config, GPU) for batch in batches), strict=True):
        torch.testing.assert_close(host, device)


@pytest.mark.slow
def test_the_benchmarks_run(tmp_path: Path) -> None:
    words = ["--models", "unet_mobilenet_v3", "--device", "cuda", "--seconds", "1", "--out"]
    small = ["--sizes", "64x96", "--rounds", "3"]
    assert command(latency.parser(), latency.run, [*words, str(tmp_path / "latency.jsonl"), *small]) == 0
    rows = records.load(tmp_path / "latency.jsonl")
    assert {("eager", "fp16"), ("onnxruntime", "tf32")} <= {
        (row["backend"], row["precision"]) for row in rows
    }
    small = ["--size", "64x96", "--batches", "2", "--rounds", "3"]
    assert (
        command(train_speed.parser(), train_speed.run, [*words, str(tmp_path / "train.jsonl"), *small]) == 0
    )
    assert all(row["memory"] > 0 for row in records.load(tmp_path / "train.jsonl"))
