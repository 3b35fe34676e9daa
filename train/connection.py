"""Reading a file behind a URL once: opened by webdataset, given up where nothing comes, killed where nobody reads."""

import hashlib
import select
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from depthzoo.errors import one_line
from train.codec import DatasetError

# A file is opened again so often, after pauses that double, before it counts as out of reach.
RETRIES, FIRST_PAUSE = 4, 1.0  # seconds
STALL_SECONDS = 60.0  # without a byte
LOOK_MS = 100  # between looks at whether anybody still wants to read
CHUNK = 1 << 20
# Exit codes of curl, with which webdataset opens http and its kind; and of a shell.
CURL = {
    6: "the host is unknown",
    7: "the connection was refused",
    18: "the connection broke off",
    22: "HTTP error, such as 404 (not found)",
    28: "timed out",
    35: "no TLS connection",
    52: "the server sent nothing",
    56: "the connection broke off",
    60: "the TLS certificate is not trusted",
}
SHELL = {126: "the command cannot be run", 127: "no such command"}
HOPELESS = {22, 60, *SHELL}
Result = TypeVar("Result")


def webdataset() -> Any:
    """The library.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        import webdataset
    except ModuleNotFoundError as error:
        if error.name != "webdataset":
            raise
        raise DatasetError(
            'data behind a URL needs webdataset, which is not installed; run pip install "depthzoo[stream]"'
        ) from None
    return webdataset


class BrokenError(Exception):
    """A connection that failed: why, and whether another attempt is no use."""

    def __init__(self, why: str, hopeless: bool = False) -> None:
        super().__init__(why)
        self.why, self.hopeless = why, hopeless


class Connection:
    """One attempt at reading a file; a context manager, whose end kills the process that fetches.

    Args:
        url: of the file.
        closing: ends a reading that waits.

    Attributes:
        sha256: of all that was read.

    Raises:
        DatasetError: for a scheme that webdataset does not know.
        BrokenError: it cannot be opened.
    """

    def __init__(self, url: str, closing: threading.Event | None = None) -> None:
        library, scheme = webdataset(), urlsplit(url).scheme
        if scheme not in ("file", *library.gopen_schemes):
            raise DatasetError(
                f"{url}: webdataset opens no {scheme}://; give a command that writes the file {{}} to its output, "
                "as in 'pipe:aws s3 cp s3://bucket/nyu/{} -'"
            )
        self.url, self.sha256 = url, hashlib.sha256()
        self._closing = closing or threading.Event()
        try:
            opened: Any = library.gopen(url, "rb")
        except (OSError, ImportError, ValueError) as error:
            raise BrokenError(*self._explain(error)) from None
        self._process = getattr(opened, "proc", None)
        # Past the buffer, whose filling would wait for more than is there.
        self._file: IO[bytes] = self._process.stdout.raw if self._process else opened
        self._opened = opened

    def _explain(self, error: Exception) -> tuple[str, bool]:
        tool = getattr(error, "filename", None)
        if isinstance(error, FileNotFoundError) and tool and "/" not in str(tool):
            return f"needs the command {tool}, which is not installed", True
        return one_line(error), isinstance(
            error, FileNotFoundError | PermissionError | ImportError | ValueError
        )

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._process:
            self._file.close()
            return
        # A silent server would let it wait.
        self._process.kill()
        self._opened.stream.close()
        self._process.wait()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, at least one, or none at the end.

        Raises:
            BrokenError: nothing came for a minute, or what fetches ended with an error.
        """
        if self._process and hasattr(select, "poll"):
            poll, end = select.poll(), time.monotonic() + STALL_SECONDS
            poll.register(self._file, select.POLLIN)
            while not poll.poll(LOOK_MS):
                if self._closing.is_set():
                    raise BrokenError("closed", True)
                if time.monotonic() > end:
                    raise BrokenError(f"nothing came for {STALL_SECONDS:.0f} s")
        try:
            data = self._file.read(size)
        except OSError as error:
            raise BrokenError(*self._explain(error)) from None
        if not data and self._process and (code := self._process.wait()):
            command = self._opened.args[0][0]
            known = SHELL if isinstance(command, str) else CURL if command[0] == "curl" else {}
            raise BrokenError(known.get(code, f"its command ended with code {code}"), code in HOPELESS)
        self.sha256.update(data)
        return data


class Retries:
    """Bears with some failures in a row.

    Args:
        url: of the file, for errors.
        closing: ends the pauses.
    """

    def __init__(self, url: str, closing: threading.Event | None = None) -> None:
        self.url, self.closing, self.failures = url, closing or threading.Event(), 0

    def failed(self, error: BrokenError) -> None:
        """Waits before the next attempt.

        Raises:
            DatasetError: there were enough, or it is no use.
        """
        self.failures += 1
        if error.hopeless or self.failures > RETRIES:
            tried = "" if error.hopeless else f", {self.failures} times in a row"
            raise DatasetError(f"{self.url}: {error.why}{tried}") from None
        pause = FIRST_PAUSE * 2 ** (self.failures - 1)
        if self.failures > 1:
            tqdm.write(f"{self.url}: {error.why}; next attempt in {pause:g} s", file=sys.stderr)
        self.closing.wait(pause)


def persistently(url: str, read: Callable[[Connection], Result]) -> Result:
    """What ``read`` makes of a connection that does not break.

    Raises:
        DatasetError: for too many that did.
    """
    retries = Retries(url)
    while True:
        try:
            with Connection(url) as connection:
                return read(connection)
        except BrokenError as error:
            retries.failed(error)
