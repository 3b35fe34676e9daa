"""Fetching weights from a real server on loopback: whole into the cache, or not at all."""

import contextlib
import http.server
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depthzoo import weights
from depthzoo.weights import WeightsError

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers with the given function, and makes it the release."""
    with contextlib.ExitStack() as stack:

        def start(answer: Answer) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    answer(self)

                def log_message(self, *args: object) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            url = f"http://127.0.0.1:{server.server_port}/release"
            monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", url + "/")
            return url

        yield start


def send(data: bytes, announced: int | None = None) -> Answer:
    """Answers with ``data``; with more bytes ``announced``, hangs up half-way."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(announced or len(data)))
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(data)

    return answer


def test_download_into_the_cache_once(zoo: Any, serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        send(zoo.good)(request)

    serve(answer)
    for _ in range(2):
        assert weights.find("tiny", "DEFAULT") == zoo.cached
    assert asked == [f"/release/{zoo.card['file']}"]
    assert zoo.in_cache() == [zoo.card["file"]]
    assert zoo.cached.read_bytes() == zoo.good
    assert capfd.readouterr().err == ""  # no terminal, no bar


def test_progress_bar(zoo: Any, serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    serve(send(zoo.good))
    weights.find("tiny", "DEFAULT", progress=True)
    assert "100%" in capfd.readouterr().err


def truncated(good: bytes) -> Answer:
    return send(good[:-10])


def wrong_digest(good: bytes) -> Answer:
    return send(good[:-1] + bytes([good[-1] ^ 1]))


def too_long(good: bytes) -> Answer:
    return send(good + b"more")


def half_way(good: bytes) -> Answer:
    return send(good[: len(good) // 2], announced=len(good))


def empty(good: bytes) -> Answer:
    return send(b"")


@pytest.mark.parametrize("fault", [truncated, wrong_digest, too_long, half_way, empty])
def test_a_bad_download_names_both_digests_and_leaves_nothing(
    zoo: Any, serve: Any, fault: Any, one_line: Any
) -> None:
    url = serve(fault(zoo.good))
    with pytest.raises(WeightsError) as error:
        weights.find("tiny", "nyu")
    text = one_line(error)
    assert f"{url}/{zoo.card['file']}" in text
    assert zoo.in_cache() == []
    # Newer Pythons notice the hang-up themselves, before there is a digest to compare.
    if "broke off" not in text:
        assert zoo.card["sha256"] in text
        assert text.count("sha256 ") == 1
        assert f"({zoo.card['bytes']} bytes)" in text


def test_an_endless_answer_is_cut_off(zoo: Any, serve: Any) -> None:
    hung_up = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(100):
                request.wfile.write(bytes(1 << 20))
        except OSError:
            hung_up.set()

    serve(answer)
    with pytest.raises(WeightsError, match="nothing was kept"):
        weights.find("tiny", "nyu")
    assert hung_up.wait(30)
    assert zoo.in_cache() == []


def test_a_connection_that_is_reset(zoo: Any, serve: Any, one_line: Any) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        send(zoo.good[:100], announced=len(zoo.good))(request)
        # Lingering for zero seconds turns the close into a reset.
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(request.connection.detach())

    serve(answer)
    with pytest.raises(WeightsError, match="Connection reset by peer") as error:
        weights.find("tiny", "nyu")
    one_line(error)
    assert zoo.in_cache() == []


def test_not_found(zoo: Any, serve: Any, one_line: Any) -> None:
    url = serve(lambda request: request.send_error(404))
    with pytest.raises(WeightsError, match=r"HTTP 404 Not Found.*weights=None") as error:
        weights.find("tiny", "DEFAULT")
    assert f"{url}/{zoo.card['file']}" in one_line(error)
    assert zoo.in_cache() == []


def test_offline_names_the_url_and_the_place_for_the_file(zoo: Any, one_line: Any) -> None:
    with pytest.raises(WeightsError, match="cannot download") as error:
        weights.find("tiny", "DEFAULT")
    text = one_line(error)
    assert f"http://127.0.0.1:9/release/{zoo.card['file']}" in text
    assert f"by hand at {zoo.cached}" in text
    assert zoo.in_cache() == []


def test_a_mirror_that_is_no_url(zoo: Any, monkeypatch: pytest.MonkeyPatch, one_line: Any) -> None:
    monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", "somewhere")
    with pytest.raises(WeightsError, match="unknown url type") as error:
        weights.find("tiny", "DEFAULT")
    one_line(error)


def test_a_folder_as_mirror(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", zoo.shelf.as_uri())
    assert weights.find("tiny", "DEFAULT").read_bytes() == zoo.good


def test_an_interrupted_download_leaves_nothing(zoo: Any, serve: Any) -> None:
    over = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        send(zoo.good[:100], announced=len(zoo.good))(request)
        deadline = time.monotonic() + 30
        while not zoo.in_cache() and time.monotonic() < deadline:
            pass  # the headers are there, so the file is about to be
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        over.wait(30)

    serve(answer)
    try:
        with pytest.raises(KeyboardInterrupt):
            weights.find("tiny", "DEFAULT")
    finally:
        over.set()
    assert zoo.in_cache() == []


def test_a_cache_that_cannot_be_made(zoo: Any, serve: Any, one_line: Any) -> None:
    serve(send(zoo.good))
    zoo.hub.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cannot write .*TORCH_HOME") as error:
        weights.find("tiny", "DEFAULT")
    assert str(zoo.cached) in one_line(error)
    assert zoo.hub.is_file()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root writes anywhere, whatever the mode says; so become somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_cache(zoo: Any, serve: Any, one_line: Any) -> None:
    serve(send(zoo.good))
    with tempfile.TemporaryDirectory() as folder:
        zoo.hub = Path(folder)
        os.chmod(folder, 0o755)
        (zoo.hub / "checkpoints").mkdir()
        (zoo.hub / "checkpoints").chmod(0o555)
        # The table lies where only its owner may look.
        table = weights._table(weights.MANIFEST)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "_table", lambda manifest: table)
            with unprivileged(), pytest.raises(WeightsError, match=r"Permission denied.*TORCH_HOME") as error:
                weights.find("tiny", "DEFAULT")
        assert zoo.in_cache() == []
        (zoo.hub / "checkpoints").chmod(0o755)
    one_line(error)


def test_a_full_disk(zoo: Any, serve: Any, one_line: Any) -> None:
    serve(send(zoo.good))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(WeightsError, match=r"cannot write .*File too large") as error:
            weights.find("tiny", "DEFAULT")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert zoo.in_cache() == []


def test_two_downloads_at_once(zoo: Any, serve: Any) -> None:
    """Both are half-way at the same moment, and each ends with the whole file."""
    together = threading.Barrier(2, timeout=30)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        half = len(zoo.good) // 2
        send(zoo.good[:half], announced=len(zoo.good))(request)
        request.wfile.flush()
        together.wait()
        request.wfile.write(zoo.good[half:])

    serve(answer)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(weights.find("tiny", "nyu"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [zoo.cached, zoo.cached]
    assert zoo.in_cache() == [zoo.card["file"]]
    assert zoo.cached.read_bytes() == zoo.good


@pytest.mark.slow
def test_two_processes_download_the_same_file(zoo: Any, serve: Any) -> None:
    url = serve(send(zoo.good))
    code = (
        "import sys, torch; from pathlib import Path; from depthzoo import weights;"
        f"weights.MANIFEST = Path({str(zoo.manifest)!r}); weights.BUNDLED = Path({str(zoo.bundled)!r});"
        f"torch.hub.set_dir({str(zoo.hub)!r}); print(weights.find('tiny', 'DEFAULT'))"
    )
    root = str(Path(weights.__file__).parents[1])
    env = os.environ | {"DEPTHZOO_WEIGHTS_URL": url, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in processes] == [str(zoo.cached)] * 2
    assert zoo.in_cache() == [zoo.card["file"]]
    assert zoo.cached.read_bytes() == zoo.good
