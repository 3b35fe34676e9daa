"""The wheel and the source distribution, and what make installs."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import depthzoo

ROOT = Path(__file__).resolve().parents[1]

# Stands for python: notes its arguments, makes virtual environments of itself, and knows the packages in `installed`.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >> {folder}/calls
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip show"*) grep -qx "${{!#}}" {folder}/installed ;;
  *"--index-url"*) exit {index_fails} ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile and a python that installs nothing."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "installed").touch()
    return tmp_path


def make(project: Path, *words: str, gpu: bool = False, index_fails: bool = False) -> tuple[list[str], str]:
    """Run make; return what it asked python to do, and what it printed."""
    programs = {"python3": FAKE_PYTHON.format(folder=project, index_fails=int(index_fails))}
    programs["uname"] = "#!/bin/sh\necho Linux\n"
    if gpu:
        programs["nvidia-smi"] = "#!/bin/sh\n"
    shutil.rmtree(project / "bin")
    (project / "bin").mkdir()
    for name, text in programs.items():
        (project / "bin" / name).write_text(text)
        (project / "bin" / name).chmod(0o755)
    (project / "calls").unlink(missing_ok=True)
    path = f"{project / 'bin'}:{os.defpath}"
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=project,
        env={"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = (project / "calls").read_text().splitlines() if (project / "calls").exists() else []
    return [
        call.removeprefix("-m ") for call in calls if not call.startswith(("-c", "-m pip show"))
    ], done.stdout


needs_make = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("bash")) or (Path("/usr/bin/nvidia-smi").exists()),
    reason="no make and bash, or a GPU",
)


@needs_make
def test_the_demo_installs_only_what_it_needs(project: Path) -> None:
    calls, out = make(project, "demo", "IMAGE=my photo.jpg")
    assert calls[0] == "venv .venv"
    assert calls[1].endswith("--index-url https://download.pytorch.org/whl/cpu torch torchvision")
    assert calls[2:] == ["pip install --editable .[export]", "benchmarks.demo --image my photo.jpg"]
    assert "downloading PyTorch and [export] into .venv: some hundred MB" in out
    assert make(project, "demo")[0] == ["benchmarks.demo"]
    # make test completes the environment; the demo then keeps it complete.
    (project / "installed").write_text("torch\nonnxruntime\n")
    assert make(project, "setup")[0] == ["pip install --editable .[dev,export]"]
    os.utime(project / "setup.cfg", (4e9, 4e9))
    assert make(project, "demo")[0] == ["pip install --editable .[dev,export]", "benchmarks.demo"]


@needs_make
def test_pytorch_comes_from_pypi_where_its_own_index_fails(project: Path) -> None:
    calls, out = make(project, "demo", index_fails=True)
    assert "pip install --editable .[export]" in calls
    assert "PyTorch comes from PyPI, with CUDA: several GB" in out


@needs_make
def test_one_onnxruntime_excludes_the_other(project: Path) -> None:
    """With a GPU it is onnxruntime-gpu; the other one is removed first, and that is said."""
    calls, out = make(project, "setup", gpu=True)
    assert calls == ["venv .venv", "pip install --editable .[dev,gpu]"] and "several GB" in out
    remove = "pip uninstall --quiet --yes onnxruntime onnxruntime-gpu"
    for gpu, other, extras in ((True, "onnxruntime", "dev,gpu"), (False, "onnxruntime-gpu", "dev,export")):
        (project / ".venv" / ".ready").unlink()
        (project / "installed").write_text(f"torch\n{other}\n")
        calls, out = make(project, "setup", gpu=gpu)
        assert calls == [remove, f"pip install --editable .[{extras}]"]
        assert f".venv has {other}, which excludes [{extras}]: removing it" in out
    (project / ".venv" / ".ready").unlink()
    (project / "installed").write_text("torch\nonnxruntime-gpu\n")
    assert make(project, "setup", "ONNX=gpu")[0] == ["pip install --editable .[dev,gpu]"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the source distribution and the wheel, as `python -m build` makes them."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("packages")
    kept = shutil.ignore_patterns(
        ".git", ".venv", "weights", "out", "build", "dist", "*.egg-info", "runs", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "checkout", ignore=kept)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "checkout"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.mark.slow
def test_the_packages(built: Path) -> None:
    pytest.importorskip("twine")
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata_file))
    assert {name.split("/")[0] for name in names} == {"depthzoo", metadata_file.split("/")[0]}
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "depthzoo").rglob("*.py")}
    assert tracked | {"depthzoo/py.typed", "depthzoo/manifest.json"} <= set(names)
    assert metadata["License-Expression"] == "MIT" and metadata["Version"] == depthzoo.__version__
    assert {"Homepage", "Issues"} <= {url.split(",")[0] for url in metadata.get_all("Project-URL", [])}
    # Of the page on PyPI, where relative links lead nowhere.
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert links and not [link for link in links if not link.startswith(("https://", "#"))]


@pytest.mark.slow
def test_the_wheel_in_a_virtual_environment(built: Path, tmp_path: Path) -> None:
    """Beside the packages that it requires, which come from the environment of the tests."""
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    import torch

    packages = str(Path(torch.__file__).parents[1])
    code = f"import sys; sys.path.append({packages!r}); import depthzoo; print(depthzoo.__file__); "
    code += "print(*depthzoo.list_models()); depthzoo.create_model('unet_mobilenet_v3', weights=None)"
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, models = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path) and models.split() == depthzoo.list_models()
