"""How a call is timed, and what holds meanwhile."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from export.latency import cuda_math
from export.run_onnx import milliseconds

# A call that is quicker is made twice in its turn.
TWICE_MS = 500


@contextmanager
def as_measured(device: torch.device) -> Iterator[None]:
    """What holds while networks are prepared and timed.

    cuDNN chooses its algorithms by trial, in the first run of each shape; a compiler keeps no results from earlier
    runs, so that first runs are first runs, and takes as many networks as there are.
    """
    import torch._dynamo.config
    import torch._inductor.config

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found"
    try:
        with (
            cuda_math(tf32=False),  # each run in TF32 sets that
            torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10000),
            torch._inductor.config.patch(force_disable_caches=True),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
            yield
    finally:
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What measures the milliseconds of a call: the processor's clock, on CUDA events around it.

    A quick call that others came before finds caches and threads as they left them. It is made twice in its turn, and
    the second counts.

    The calls of a library with a stream of its own end between the events too, because they wait for it.
    """

    def between_events(run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    once = milliseconds if device.type == "cpu" else between_events

    def turn(run: Callable[[], object]) -> float:
        taken = once(run)
        return taken if taken > TWICE_MS else once(run)

    return turn


def settings(device: torch.device) -> Mapping[str, object]:
    """How it is measured, to be stored."""
    if device.type == "cpu":
        return {"clock": "perf_counter", "twice_ms": TWICE_MS, "cudnn_benchmark": None}
    return {"clock": "cuda events", "twice_ms": TWICE_MS, "cudnn_benchmark": True}
