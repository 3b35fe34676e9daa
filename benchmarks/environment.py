"""What a machine offers: its GPU and libraries, and what keeps onnxruntime's providers from working.

    python benchmarks/environment.py [--device cpu|cuda]

Printed, and stored in results/environment.DEVICE.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train and export.
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnx  # noqa: E402

from benchmarks.measure.record import RESULTS, facts, store_run  # noqa: E402
from benchmarks.report.markdown import memory  # noqa: E402
from depthzoo.predictor import select_device  # noqa: E402
from export.run_onnx import PROVIDERS, OnnxError, open_session  # noqa: E402
from train.arguments import command  # noqa: E402

PACKAGES = (
    "torchvision",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-cu13",
    "nvidia-cudnn-cu13",
    "triton",
    "transformers",
    "segmentation-models-pytorch",
    "h5py",
    "numpy",
    "pillow",
)
# Of nvidia-smi: how the card is set, which its figures depend on.
CARD = (
    "power.limit",
    "clocks.max.sm",
    "clocks.max.mem",
    "compute_mode",
    "mig.mode.current",
    "persistence_mode",
)


def convolution() -> bytes:
    """An ONNX file of one convolution: the smallest that needs all of a provider's libraries."""
    tensor = onnx.helper.make_tensor_value_info
    ends = [
        tensor("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8]),
        tensor("out", onnx.TensorProto.FLOAT, [1, 4, 6, 6]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["image", "weight"], ["out"])
    graph = onnx.helper.make_graph([node], "convolution", ends[:1], ends[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 18)]
    content: bytes = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return content


def providers() -> dict[str, str]:
    """ "works", or the reason why not, for each of onnxruntime's providers that the export knows."""
    found = {}
    for name in PROVIDERS:
        try:
            open_session(convolution(), name).run(None, {"image": np.zeros((1, 3, 8, 8), np.float32)})
            found[name] = "works"
        except OnnxError as error:
            found[name] = str(error)
        except Exception as error:  # onnxruntime's errors at the first run share no base
            found[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return found


def card() -> dict[str, str]:
    """How the GPU is set, as nvidia-smi tells; empty where it does not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    call = [program, f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    result = subprocess.run(call, capture_output=True, text=True)
    values = result.stdout.splitlines()[:1]
    return dict(zip(CARD, map(str.strip, values[0].split(",")), strict=False)) if values else {}


def main_memory() -> int | None:
    """Bytes of the machine, where the system tells."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= set(os.sysconf_names) else None


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="environment.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("--device", metavar="cpu|cuda", help="default: CUDA where there is one")
    main.add_argument("--out", type=Path, metavar="FILE", help="default: results/environment.DEVICE.json")
    return main


def run(args: argparse.Namespace) -> int:
    """Prints and stores."""
    device = select_device(args.device)
    out = args.out or RESULTS / f"environment.{device.type}.json"
    if not out.parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist")
    known: dict[str, Any] = facts(device, PACKAGES) | {"providers": providers(), "memory": main_memory()}
    known |= {
        "disk_free": shutil.disk_usage(out.parent).free,
        "card": card() if device.type == "cuda" else {},
    }
    store_run(out, known, [])
    machine = known["machine"]
    print(f"{'processor':<28}{machine['processor']}, {machine['cores']} cores, {memory(known['memory'])}")
    if "gpu" in machine:
        print(f"{'GPU':<28}{machine['gpu']}, {memory(machine['gpu_memory'])}, driver {machine['driver']}")
    for table in (known["card"], known["versions"], known["providers"]):
        for name, value in table.items():
            print(f"{name:<28}{value}")
    print(f"-> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
