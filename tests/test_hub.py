"""The repository as torch.hub sees it: another process, another folder, the library not installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "dispnet_vgg16",
    "predictor",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]

# Undoes an editable installation of the library, closes the network, and collects answers.
PRELUDE = """
import importlib.util, json, os, socket, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{f!r} {getattr(f, '__module__', '')}"]
sys.path[:] = [p for p in sys.path if p == "" or not os.path.isdir(os.path.join(p, "depthzoo"))]
assert importlib.util.find_spec("depthzoo") is None, "depthzoo is installed here"

def closed(*args):
    raise AssertionError(f"the network was touched: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = closed
import torch
answers = {}
"""
EPILOGUE = """
answers["file"] = sys.modules["depthzoo"].__file__
answers["foreign"] = sorted({m.split(".")[0] for m in sys.modules} & {"train", "export", "benchmarks"})
answers["heavy"] = sorted({"matplotlib", "h5py", "onnx", "onnxruntime"} & set(sys.modules))
answers["path"] = sys.path
print("ANSWERS " + json.dumps(answers))
"""


def run(code: str, folder: Path) -> dict[str, Any]:
    """What ``code`` put into ``answers``, run in a fresh ``folder`` with an empty torch home beside it."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    env = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DEPTHZOO_WEIGHTS_URL")
    }
    env |= {"TORCH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + EPILOGUE],
        cwd=elsewhere,
        env=env,
        stdin=subprocess.DEVNULL,  # a question about trust is an error
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    answers: dict[str, Any] = json.loads(lines[0].removeprefix("ANSWERS "))
    return answers


LOCAL = f"""
repo = {str(ROOT)!r}
model = torch.hub.load(repo, "unet_mobilenet_v3", source="local", weights=None, trust_repo=True)
with torch.no_grad():
    depth = model.eval()(torch.rand(1, 3, 32, 64))
answers["depth"] = [list(depth.shape), str(depth.dtype), depth.min().item(), depth.max().item()]
# By position: torch.hub.load has a parameter called model itself.
predict = torch.hub.load(
    repo, "predictor", "unet_mobilenet_v3", source="local", pretrained=False, device="cpu", trust_repo=True
)
answers["predictor"] = type(predict).__name__
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("local")
    return run(LOCAL, folder) | {"home": (folder / "home").exists()}


def test_a_local_checkout_gives_a_model_and_a_predictor(local: dict[str, Any]) -> None:
    shape, dtype, low, high = local["depth"]
    assert (shape, dtype) == ([1, 1, 32, 64], "torch.float32")
    assert 0.001 <= low <= high <= 10
    assert local["predictor"] == "Predictor"
    assert Path(local["file"]) == ROOT / "depthzoo" / "__init__.py"


def test_loading_imports_and_writes_nothing_else(local: dict[str, Any]) -> None:
    """That it opens no connection the subprocess has checked itself."""
    assert local["foreign"] == []
    assert local["heavy"] == []
    assert str(ROOT) not in local["path"]
    assert not local["home"]


HUB = """
import shutil
from pathlib import Path
archive = {archive!r}
downloads = []

def download(url, dst, *args, **kwargs):  # what GitHub would send
    downloads.append(url)
    shutil.copy(archive, dst)

torch.hub.download_url_to_file = download
where, trust = "org/depthzoo:main", dict(trust_repo=True, skip_validation=True)
answers["list"] = torch.hub.list(where, **trust)
answers["help"] = {{name: torch.hub.help(where, name, **trust) for name in answers["list"]}}
random = torch.hub.load(where, "unet_mobilenet_v3", weights=None, **trust)
answers["downloads"] = downloads
answers["repo"] = sorted(p.name for p in Path(torch.hub.get_dir()).iterdir() if p.is_dir())

# Weights that the archive brings are found beside the library, and nowhere else.
from depthzoo import weights
from depthzoo.files import sha256_of, write_json
repo = Path(weights.__file__).parents[1]
path = repo / "weights/unet_mobilenet_v3_hub-test.safetensors"
weights.save_weights(
    path, random.state_dict(), {{"model": random.name, "tag": "hub-test", "arguments": random.arguments}}
)
entry = {{"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}}
write_json(repo / "depthzoo/manifest.json", {{random.name: {{"hub-test": entry}}}})
trained = torch.hub.load(where, "unet_mobilenet_v3", **trust)
state = trained.state_dict()
answers["equal"] = all(
    torch.equal(state[k], v) or torch.equal(state[k], v.half().float()) for k, v in random.state_dict().items()
)
answers["card"] = trained.card
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A zip laid out as GitHub's, unpacked and loaded by torch.hub itself."""
    folder = tmp_path_factory.mktemp("hub")
    tree = folder / "archive" / "depthzoo-main"
    tree.mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", tree)
    shutil.copytree(ROOT / "depthzoo", tree / "depthzoo", ignore=shutil.ignore_patterns("__pycache__"))
    archive = folder / "main.zip"
    with zipfile.ZipFile(archive, "w") as file:
        # GitHub's first entry is the folder, and torch.hub reads the name from there.
        for path in (tree, *sorted(tree.rglob("*"))):
            file.write(path, path.relative_to(tree.parent))
    home = folder / "home" / "hub" / "org_depthzoo_main"
    return run(HUB.format(archive=str(archive)), folder) | {"home": str(home)}


def test_the_entry_points_are_the_six_models_and_the_predictor(hub: dict[str, Any]) -> None:
    assert sorted(hub["list"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_builders_docstring(hub: dict[str, Any], name: str) -> None:
    assert "weights" in hub["help"][name]
    assert "Args:" in hub["help"][name]


def test_a_hub_download_is_unpacked_once(hub: dict[str, Any]) -> None:
    assert len(hub["downloads"]) == 1
    assert "/org/depthzoo/zip" in hub["downloads"][0]
    assert hub["repo"] == ["org_depthzoo_main"]
    assert Path(hub["file"]).resolve() == Path(hub["home"]).resolve() / "depthzoo" / "__init__.py"
    assert hub["foreign"] == []


def test_a_hub_download_brings_its_weights(hub: dict[str, Any]) -> None:
    """The archive carries ``weights/``, so a default model needs no second download."""
    assert hub["equal"]
    assert (hub["card"]["model"], hub["card"]["tag"]) == ("unet_mobilenet_v3", "hub-test")
