"""Work in new processes: their memory is their own, and several can work at once."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from tqdm import tqdm


def in_children(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Calls a module's function in one new process for each tuple of arguments, all at once.

    Returns:
        What they return, in the order of ``calls``.

    Raises:
        ChildProcessError: one of them raised, or was killed. All others are ended then.
    """
    context = multiprocessing.get_context("spawn")
    processes = []
    pending: dict[Connection, int] = {}
    found: list[Any] = [None] * len(calls)
    try:
        for number, arguments in enumerate(calls):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(sender, function, arguments), daemon=True)
            process.start()
            processes.append(process)
            sender.close()
            pending[receiver] = number
        while pending:
            for ready in cast(list[Connection], wait(list(pending))):
                number = pending.pop(ready)
                try:
                    error, found[number] = ready.recv()
                except EOFError:
                    processes[number].join()
                    error = f"a process ended without an answer (exit code {processes[number].exitcode})"
                if error:
                    raise ChildProcessError(error)
        for process in processes:
            process.join()
        return found
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    tqdm.set_lock(threading.RLock())  # its own one would be left behind by a process that is ended
    try:
        answer = "", function(*arguments)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        answer = f"{type(error).__name__}: {lines[0]}", None
    sender.send(answer)
