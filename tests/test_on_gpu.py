"""What only a GPU can show: the device cache, and that PyTorch and exported files give the CPU's metres there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import depthzoo
from export.run_onnx import OnnxDepth
from export.to_onnx import export_onnx
from train.augment import augment
from train.codec import encode_depth, encode_image
from train.config import AugmentConfig
from train.loading import SampleStream, open_frames
from train.rooms import render
from train.shards import ShardDataset, ShardWriter, write_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE, PROVIDER = torch.device("cuda"), "cuda"
SIZE = (192, 256)


@pytest.fixture(scope="module")
def model() -> depthzoo.DepthModel:
    return depthzoo.create_model("unet_mobilenet_v3").eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two rooms, (2, 3, H, W) in [0, 1]."""
    pictures = np.stack([render(seed, SIZE).image for seed in (3, 4)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def metres(model: depthzoo.DepthModel, images: torch.Tensor) -> np.ndarray:
    """Of the CPU, in float32."""
    with torch.inference_mode():
        return model(images).numpy()


def test_eager_on_a_gpu_gives_the_metres_of_the_cpu(images: torch.Tensor, metres: np.ndarray) -> None:
    model = depthzoo.create_model("unet_mobilenet_v3").eval().to(DEVICE)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        found = model(images.to(DEVICE)).cpu().numpy()
    np.testing.assert_allclose(found, metres, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_file_on_a_gpu_gives_the_metres_of_the_cpu(
    precision: str,
    model: depthzoo.DepthModel,
    images: torch.Tensor,
    metres: np.ndarray,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(model, path, precision=precision)
    options = {"use_tf32": 0} if PROVIDER == "cuda" else {}
    found = OnnxDepth(path, PROVIDER, SIZE, options=options).run(images.numpy())
    difference = np.abs(found - metres)
    if precision == "fp32":
        assert difference.max() < 1e-3
    else:
        assert difference.mean() < 2e-3 and np.quantile(difference, 0.999) < 2e-2 and difference.max() < 0.1


def test_a_gpu_that_caches_the_frames_augments_them_alike(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        for seed in range(4):
            room = render(seed, (48, 64))
            writer.write(f"r{seed}", *encode_image(room.image), encode_depth(room.depth))
    write_dataset(tmp_path, {"train": {**writer.entry, "size": [48, 64], "focal_px": room.camera.focal_px}})
    data, varied = ShardDataset(tmp_path, "train"), AugmentConfig(flip=True, zoom=(0.95, 1.2), rotate=4.0)
    batches = {
        cache: SampleStream(open_frames(data, cache, DEVICE, progress=False), seed=0).batch(0, 4)
        for cache in ("ram", "device")
    }
    assert (
        batches["device"].image.device.type == DEVICE.type and batches["ram"].keys == batches["device"].keys
    )
    for cached, known in zip(
        augment(batches["device"], (48, 64), varied, DEVICE),
        augment(batches["ram"], (48, 64), varied, DEVICE),
        strict=True,
    ):
        torch.testing.assert_close(cached, known)
