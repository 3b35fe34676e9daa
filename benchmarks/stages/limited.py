"""A command with a time limit, that is asked to stop before it is made to."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

GRACE = 60.0  # seconds between asking and killing: a training saves meanwhile
DYING = 10.0  # seconds that what was killed may take; one that nobody waits for is there for ever


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
            process.wait(grace)
    finally:
        send(process, signal.SIGKILL)  # what it has started may outlive it
    code, until = process.wait(), time.monotonic() + DYING
    # A signal is not a death yet, and what dies may still hold a GPU that the next command wants.
    while send(process, 0) and time.monotonic() < until:
        time.sleep(0.02)
    return code


def send(process: subprocess.Popen[bytes], number: int) -> bool:
    """Sends a signal to what is left of a process group; whether anything is."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
