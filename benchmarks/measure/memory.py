"""Peak memory of a call, as the device tells it."""

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(device: torch.device, outside_torch: bool = False) -> int | None:
    """Bytes held now, to be taken off a later peak.

    Args:
        device: on the CPU this process's resident set (Linux only, elsewhere None), after what is free went back to
            the system; on CUDA what PyTorch's allocator has given out.
        outside_torch: on CUDA, all that is in use on the device, for a library with an allocator of its own.
    """
    gc.collect()
    if device.type == "cpu":
        return resident("VmRSS")
    if not outside_torch:
        return torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    return used(device)


def peak(call: Callable[[], object], device: torch.device, outside_torch: bool = False) -> int | None:
    """The most that was held while ``call`` ran, in the measure of :func:`held`.

    Outside PyTorch on CUDA it is what is in use after the call: such a library keeps what it has taken.
    """
    if device.type == "cpu":
        # The kernel's high-water mark starts anew.
        try:
            CLEAR.write_text("5")
        except OSError:
            return None
        call()
        return resident("VmHWM")
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return used(device) if outside_torch else torch.cuda.max_memory_allocated(device)


def used(device: torch.device) -> int:
    """Bytes in use on a CUDA device, by anybody."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def resident(field: str) -> int | None:
    """A size in bytes that Linux tells of this process: VmRSS now, VmHWM the most since it was reset."""
    if field == "VmRSS":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
