"""What make demo writes and prints, and what gpu.sh runs."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import demo
from train.arguments import command


@pytest.mark.slow
def test_everything_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "unet_mobilenet_v3", "--out", str(tmp_path)]
    assert command(demo.parser(), demo.run, words) == 0
    names = ["onnx.color.png", "onnx.depth.png", "panel.png", "unet_mobilenet_v3.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert np.asarray(Image.open(tmp_path / "onnx.depth.png")).shape == (480, 640)
    out = capsys.readouterr().out
    apart = re.search(r"at most ([\d.e-]+) m apart", out)
    assert "parity with PyTorch: max " in out and apart and float(apart[1]) < 1e-2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "missing.jpg"], "missing.jpg: no such file"),
        (["--image", "text.jpg"], "text.jpg: not an image"),
        (["--model", "unet_resnet"], "unet_resnet"),
        (["--weights", "nosuchtag"], "nosuchtag"),
    ],
)
def test_bad_arguments(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    assert command(demo.parser(), demo.run, words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_gpu_script_names_commands_flags_and_recipes_that_exist(root: Path) -> None:
    script = root / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    for module, words in re.findall(r"^\s*run ((?:benchmarks|train)\.\w+)(.*)$", text, re.MULTILINE):
        help_text = (
            importlib.import_module(f"{module}.__main__" if module == "train.reproduction" else module)
            .parser()
            .format_help()
        )
        for flag in re.findall(r"--[a-z-]+", words):
            assert flag in help_text, (module, flag)
    models = re.search(r'^models="(.*)"$', text, re.MULTILINE)
    assert models
    recipes = models[1].split() + re.findall(r"^train \w+ (\w+)", text, re.MULTILINE)
    assert len(recipes) == 8
    for recipe in recipes:
        assert (root / "train" / "recipes" / f"{recipe}.toml").is_file()


def test_the_gpu_script_continues_a_training_that_its_time_limit_stopped(root: Path, tmp_path: Path) -> None:
    """With a python that only notes how it is called, and a timeout that stops every first training."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(root / "benchmarks" / "gpu.sh", tmp_path / "benchmarks")
    calls = tmp_path / "calls"
    fakes = tmp_path / "bin"
    fakes.mkdir()
    (fakes / "timeout").write_text(
        f"""#!/usr/bin/env bash
shift 5
words="$*"
echo "$words" >> {calls}
if [[ $words == *"-m train "* && $words != *--resume* ]]; then
  out="${{words##*--out }}"; mkdir -p "${{out%% *}}"; touch "${{out%% *}}/checkpoint.safetensors"; exit 124
fi
"""
    )
    (fakes / "timeout").chmod(0o755)
    command = ["bash", "benchmarks/gpu.sh", "nyu", "runs"]
    environment = {"PATH": f"{fakes}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    starts = [line for line in lines if "-m train --recipe" in line]
    assert len(starts) == 8 and len([line for line in lines if "-m train --resume" in line]) == 8
    assert [line for line in lines if "benchmarks.report" in line]
