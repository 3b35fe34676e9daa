"""What ``import depthzoo`` brings along, seen in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

LIST = """
import json, sys
import torch, torchvision
before = set(sys.modules)
import depthzoo
names = depthzoo.list_models(), depthzoo.list_losses()
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
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
    added, loaded = json.loads(result.stdout.splitlines()[-1])
    assert not {name.split(".")[0] for name in loaded} & {*NEVER, *OTHERS}
    packages = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert packages - KNOWN == set()
    # The command is for those who ask for it.
    assert not [n for n in added if n.startswith("depthzoo.cli")]
    # Of torch itself only what is small.
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx._internal", "torchvision.datasets.mnist")
    assert not [n for n in added if n.startswith(heavy)]
    assert result.stderr == ""
