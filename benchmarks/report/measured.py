"""What has been measured: the runs of the result files, and where each was made."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure.record import read_runs

# Device kind, and what tells one machine from another.
Place = tuple[str, str]
KINDS = {"cpu": "a CPU", "cuda": "a GPU"}


def collect(results: Path, question: str) -> list[dict[str, Any]]:
    """All runs that answer a question, those on a CPU first.

    Raises:
        ValueError: naming a file that is no result file.
    """
    return [run for path in sorted(results.glob(f"{question}.*.json")) for run in read_runs(path)]


def place(run: Mapping[str, Any]) -> Place:
    """Where a run was measured."""
    machine = run["machine"]
    if machine["device"] == "cuda":
        return "cuda", str(machine["gpu"])
    threads = machine["threads"]
    return "cpu", f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}"


def unmeasured(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each kind of device on which none of the runs was made."""
    measured = {place(run)[0] for run in runs}
    return [f"Not measured yet on {name}." for kind, name in KINDS.items() if kind not in measured]
