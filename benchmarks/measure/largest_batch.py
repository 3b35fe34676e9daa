"""The largest batch that a card of so much memory trains with: tried out on a GPU, counted without one."""

import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.live_tensors import counted_peak
from benchmarks.measure.sample_set import recipe, start_run
from benchmarks.measure.ways import Work
from train.engine import Run

GIB = 2**30
LEFT = GIB  # bytes of a card that are not PyTorch's tensors, where memory is counted: context, kernels
COUNTED = (4, 8)  # pictures: enough that activations, not gradients of weights, make the peak
MOST = 1024  # pictures in a batch at which the search stops
GRAIN = 16  # it ends once it knows the batch to a 16th


def largest(fits: Callable[[int], bool], start: int = 1, most: int = MOST, grain: int = GRAIN) -> int:
    """The largest batch that fits, by doubling and bisection; 0 if none does.

    Args:
        fits: whether a batch does; it is asked once for each.
        start: a guess.
        most: no larger one is tried.
        grain: what is left unknown is at most this share of the batch, 1/grain; below ``grain`` nothing is.
    """
    good, bad, trial = 0, most + 1, max(1, min(start, most))
    while bad - good > max(1, good // grain):
        if fits(trial):
            good = trial
        else:
            bad = trial
        trial = min(most, 2 * good) if bad > most else (good + bad) // 2
    return good


def largest_rows(work: Work, cards: Sequence[int], missing: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each card, without and with recomputed activations.

    Args:
        work: the model, the size and the data; way and batch do not matter.
        cards: memory in GiB.
        missing: what cannot be measured is added, with the reason.
    """
    on_gpu = torch.device(work.device).type == "cuda"
    for again in (False, True):
        yield from (tried_rows if on_gpu else counted_rows)(work, again, cards, missing)


# -- tried out ------------------------------------------------------------------------------------------------


def tried_rows(
    work: Work, again: bool, cards: Sequence[int], missing: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The steps of a run, with ever new batches, while PyTorch may take no more than the card has."""
    device, known = torch.device(work.device), (1, 1)
    for card in sorted(cards):
        try:
            with card_of(card * GIB, device), a_run(work, again) as run:
                batch = largest(partial(fits_in_memory, run), known[0] * card // known[1])
        except (ValueError, RuntimeError) as error:
            what = f"{work.model}, largest batch in {card} GB{', recomputing' if again else ''}"
            missing[what] = (str(error).splitlines() or [type(error).__name__])[0]
            free_unused()
            continue
        known = max(1, batch), card
        yield row(work, again, card, batch, "measured")


def row(work: Work, again: bool, card: int, batch: int, by: str, **more: int) -> dict[str, Any]:
    """What is stored."""
    found = {"model": work.model, "memory": card * GIB, "recompute": again, "batch": batch, "by": by}
    return found | more


@contextmanager
def card_of(nbytes: int, device: torch.device) -> Iterator[None]:
    """Lets PyTorch take what it could on a card of so many bytes: all but what is outside of it now, as the context.

    Raises:
        ValueError: the device is smaller by more than a 20th.
    """
    free_unused()
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    if nbytes > 1.05 * total:
        raise ValueError(f"{device} has {total / GIB:.1f} GiB")
    outside = total - free - torch.cuda.memory_reserved(index)
    torch.cuda.set_per_process_memory_fraction((min(nbytes, total) - outside) / total, index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


@contextmanager
def a_run(work: Work, again: bool) -> Iterator[Run]:
    """A run of the model's recipe."""
    config = recipe(work.model, size=work.size, frames=work.frames, precision=work.precision, recompute=again)
    with tempfile.TemporaryDirectory() as folder:
        yield start_run(config, work.data, Path(folder, "run"), torch.device(work.device))


def set_batch(run: Run, batch: int) -> None:
    """Makes the next steps have so many pictures."""
    run.feed.shares = {name: batch if name == "data" else 0 for name in run.feed.shares}


def fits_in_memory(run: Run, batch: int) -> bool:
    """Whether two steps of so many pictures run."""
    set_batch(run, batch)
    try:
        run.train_step()
        run.train_step()
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        return True
    except RuntimeError as error:
        if not is_memory(error):
            raise
    # Only here: the error's traceback held on to tensors.
    run.learner.optimizer.zero_grad(set_to_none=True)
    free_unused()
    return False


def is_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, in whatever library."""
    words = ("out of memory", "alloc_failed", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def free_unused() -> None:
    """Gives back what nobody refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- counted --------------------------------------------------------------------------------------------------


def counted_rows(
    work: Work, again: bool, cards: Sequence[int], missing: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """From what a run keeps always, and what its steps make and hold with few and with twice as many pictures."""
    peaks: dict[int, int] = {}
    with a_run(work, again) as run:
        run.train_step()  # the optimiser's moments are kept from here on
        for batch in COUNTED:
            set_batch(run, batch)
            peaks[batch] = counted_peak(run.train_step)
        kept = kept_bytes(run)
    few, many = COUNTED
    each = (peaks[many] - peaks[few]) / (many - few)
    always = kept + peaks[few] - few * each
    for card in cards:
        batch = max(0, math.floor((card * GIB - LEFT - always) / each))
        numbers = {"bytes_per_image": round(each), "bytes_always": round(always)}
        yield row(work, again, card, batch, "counted", **numbers)


def kept_bytes(run: Run) -> int:
    """Of weights, moving average and the optimiser's moments."""
    learner = run.learner
    kept: list[Any] = [*learner.model.parameters(), *learner.model.buffers()]
    if learner.average is not None:
        kept += [*learner.average.parameters(), *learner.average.buffers()]
    kept += [value for state in learner.optimizer.state.values() for value in state.values()]
    return sum(one.nbytes for one in kept if isinstance(one, torch.Tensor))
