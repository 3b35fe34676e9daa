"""What ``import depthzoo`` brings along, seen in a process of its own."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import depthzoo

LIST = """
import json, sys
import depthzoo
first = sorted(sys.modules)
import torch, torchvision
before = set(sys.modules)
from depthzoo import *
names = depthzoo.list_models(), depthzoo.list_losses()
print(json.dumps([first, sorted(set(sys.modules) - before), sorted(sys.modules)]))
"""
# Slow to load, or an extra that a plain installation does not have, or not part of the library.
NEVER = (
    "matplotlib",
    "h5py",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorboard",
    "scipy",
    "pandas",
    "webdataset",
    "huggingface_hub",
)
OTHERS = ("train", "export", "benchmarks", "hubconf")
# Everything else that the library may bring beyond torch and torchvision.
KNOWN = {"depthzoo", "safetensors", "tqdm", "PIL", "numpy"}


def test_import_is_light(root: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIST],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, added, loaded = json.loads(result.stdout.splitlines()[-1])
    # The package alone: nothing but the standard library, and of itself only the top.
    assert not {name.split(".")[0] for name in first} & (KNOWN - {"depthzoo"} | {"torch", "torchvision"})
    assert [name for name in first if name.startswith("depthzoo.")] == []
    # All public names.
    assert not {name.split(".")[0] for name in loaded} & {*NEVER, *OTHERS}
    packages = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert packages - KNOWN == set()
    # The command is for those who ask for it.
    assert not [n for n in added if n.startswith("depthzoo.cli")]
    # Of torch itself only what is small.
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx._internal", "torchvision.datasets.mnist")
    assert not [n for n in added if n.startswith(heavy)]
    assert result.stderr == ""


def test_type_checkers_see_what_users_get() -> None:
    """The names imported for type checkers, those found at run time and ``__all__`` are the same."""
    tree = ast.parse(Path(depthzoo.__file__).read_text(encoding="utf-8"))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"
    ]
    checked = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted([*checked, "__version__"]) == depthzoo.__all__
    for name, module in checked.items():
        __import__(module)
        assert getattr(depthzoo, name) is getattr(sys.modules[module], name)
    assert set(depthzoo.__all__) <= set(dir(depthzoo))


def test_submodules_and_unknown_names() -> None:
    namespace: Any = depthzoo
    for name in set(dir(depthzoo)) - set(depthzoo.__all__):
        assert getattr(namespace, name) is sys.modules[f"depthzoo.{name}"]
    with pytest.raises(AttributeError, match="module 'depthzoo' has no attribute 'creat_model'"):
        namespace.creat_model  # noqa: B018
