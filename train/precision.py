"""The precision of a run: that of its recipe, or float32 where the device only emulates it."""

import sys

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def usable_precision(precision: str, device: torch.device) -> str:
    """Return ``precision``, or "fp32" if half precision is slower on this device.

    A CPU without AVX-512 converts every value back and forth: a step of the U-Net takes 30 times as long in bfloat16 as
    in float32. CUDA devices before Ampere (compute capability 8.0) emulate bfloat16 too, but not float16.
    """
    if precision == "fp32":
        return precision
    if device.type == "cpu":
        # "DEFAULT" is any processor without vectorized kernels in PyTorch, such as Apple's.
        return "fp32" if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2") else precision
    if device.type == "cuda" and precision == "bf16":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return precision if capable else "fp32"
    return precision


def report_precision(wanted: str, used: str, device: torch.device) -> None:
    """Print a line on stderr if a run computes in another precision than its recipe's."""
    if used != wanted:
        hint = "; --precision fp16 is faster" if device.type == "cuda" else ""
        print(f"no fast {wanted} on this {device.type.upper()}: computing in {used}{hint}", file=sys.stderr)
