"""The exported file where there is no PyTorch: the same metres."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo.models import DepthModel

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "export" / "run_onnx.py"
# Runs the script with its arguments; an import of anything but what a deployer has is an error.
WITHOUT = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "depthzoo", "onnx", "matplotlib", "scipy", "tqdm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What a project that copied run_onnx.py does.
PROJECT = """
import importlib.util, sys

import numpy
from PIL import Image
from run_onnx import OnnxDepth

assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("depthzoo") is None
model = OnnxDepth(sys.argv[1], size=(64, 96))
numpy.save("depth.npy", model.predict(Image.open(sys.argv[2])))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def metres(model: DepthModel, photo: Path) -> np.ndarray:
    image = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        depth: np.ndarray = model(image)[0, 0].numpy()
    return depth


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_no_import_but_a_deployers(tiny: DepthModel, tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    arguments = [str(SCRIPT), str(tiny_file), str(photo), "--size", "64x96", "--out", "out"]
    done = run([sys.executable, "-c", WITHOUT, *arguments], tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo.depth.png", "photo.preview.png"]
    saved = np.asarray(Image.open(tmp_path / "out" / "photo.depth.png"))
    assert np.abs(saved / 1000 - metres(tiny, photo)).max() < 1e-3


@pytest.mark.slow
def test_an_environment_without_torch(tiny: DepthModel, tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    """A virtual environment with numpy, pillow and onnxruntime; in CI it must be possible to make one."""
    python = str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = run([python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"], tmp_path)
    if install.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip cannot install onnxruntime here: {install.stderr.strip().splitlines()[-1]}")
    assert install.returncode == 0, install.stderr
    (tmp_path / "run_onnx.py").write_text(SCRIPT.read_text())
    (tmp_path / "project.py").write_text(PROJECT)
    done = run([python, "project.py", str(tiny_file), str(photo)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "depth.npy") - metres(tiny, photo)).max() < 1e-4
    # This onnxruntime is built for the CPU alone, and says so.
    asked = run([python, "run_onnx.py", str(tiny_file), "--info", "--provider", "cuda"], tmp_path)
    assert asked.returncode == 2 and asked.stdout == ""
    expected = "run_onnx: error: this onnxruntime has no cuda: "
    expected += (
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'\n"
    )
    assert asked.stderr == expected
