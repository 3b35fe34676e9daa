"""A command with a time limit, that is asked to stop before it is made to."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

GRACE = 60.0  # seconds between asking and killing: a training saves meanwhile


def run_limited(words: Sequence[str], seconds: float, folder: Path, grace: float = GRACE) -> tuple[int, bool]:
    """Runs a command to its end, or until its time is up: SIGINT to it and its children, later SIGKILL.

    Ctrl-C here does the same and is raised again.

    Args:
        words: the command.
        seconds: its time.
        folder: where it runs.
        grace: seconds between the two signals.

    Returns:
        The exit code, and whether its time was up.
    """
    process = subprocess.Popen(words, cwd=folder, start_new_session=True)
    try:
        return process.wait(seconds), False
    except subprocess.TimeoutExpired:
        return stop(process, grace), True
    except KeyboardInterrupt:
        stop(process, grace)
        raise


def stop(process: subprocess.Popen[bytes], grace: float) -> int:
    """Ends a process group; the exit code."""
    try:
        send(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(grace)
    finally:
        send(process, signal.SIGKILL)  # what it has started may outlive it
    return process.wait()


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
