"""Verified files: sha256 checks, atomic writes, and a download that leaves a whole file or none."""

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch.hub

CHUNK = 1 << 20
STALL_SECONDS = 30.0


class WeightsError(ValueError):
    """Weights that cannot be found, fetched, read or fitted; always one line that says what to do."""


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(sha256: str, size: int, card: dict[str, Any]) -> str | None:
    """What differs between a file and its card, both digests named, or None where they agree."""
    if sha256 == card["sha256"] and size == card["bytes"]:
        return None
    return f"sha256 {sha256} ({size} bytes), expected {card['sha256']} ({card['bytes']} bytes)"


def reason(error: BaseException) -> str:
    """The cause in an exception, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason(error.reason)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends, and vanishes when the block raises.

    The name on the way is unique, so writers in several processes do not meet; the folder is made.

    Raises:
        OSError: where the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        # Not tempfile: its files are for the owner only, and a cache may be shared by a group.
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def download(url: str, path: Path, card: dict[str, Any], progress: bool | None = None) -> Path:
    """Fetches ``url`` into ``path``; its size and sha256 are checked before the file gets that name.

    Args:
        url: any that urllib opens, so ``file://`` mirrors too.
        path: where the file goes; its folder is made.
        card: has the ``sha256`` and the ``bytes`` that are expected.
        progress: a bar on stderr; None is only where stderr is a terminal.

    Raises:
        WeightsError: for any failure; names the URL and the path. Nothing half-written stays.
    """
    advice = f"; put the file by hand at {path}, or set DEPTHZOO_WEIGHTS_URL to a mirror"
    show = sys.stderr.isatty() if progress is None else progress
    digest, size = hashlib.sha256(), 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "depthzoo"})
        response = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WeightsError(f"cannot download {url}: {reason(error)}{advice}") from error
    # torch.hub's tqdm is the real one where it is installed, else a plain percentage.
    hub: Any = torch.hub
    bar = hub.tqdm(total=card["bytes"], disable=not show, unit="B", unit_scale=True, desc=path.name)
    try:
        with response, bar, atomic(path) as file:
            # A server that sends more than was announced does not get to fill the disk.
            while size <= card["bytes"] and (chunk := _read(response, url, advice)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
            wrong = mismatch(digest.hexdigest(), size, card)
            if wrong:
                raise WeightsError(f"downloaded {url}: {wrong}; nothing was kept{advice}")
    except OSError as error:
        raise WeightsError(
            f"cannot write {path} from {url}: {reason(error)}; set TORCH_HOME to a writable folder"
        ) from error
    return path


def _read(response: IO[bytes], url: str, advice: str) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"download of {url} broke off: {reason(error)}; nothing was kept{advice}"
        ) from error
