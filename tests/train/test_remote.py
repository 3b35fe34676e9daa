"""Data sets behind a URL: fetched whole, verified, and named where they cannot be had."""

import json
import os
import socket
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train import connection
from train.remote import RemoteSet, fetch_split, is_remote
from train.shards import DatasetError, ShardDataset

pytestmark = pytest.mark.usefixtures("no_pauses")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "dataset.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("data", "remote"),
    [
        ("http://host/path/nyu", True),
        ("https://host/nyu/{}?key=1", True),
        ("s3://bucket/nyu", True),
        ("file:///data/nyu", True),
        ("file:/data/nyu", True),
        ("pipe:cat /data/nyu/{}", True),
        ("data/nyu", False),
        ("/data/nyu", False),
        ("C:\\data\\nyu", False),
        ("C:/data/nyu", False),
        ("data/a:b", False),
    ],
)
def test_is_remote(data: str, remote: bool) -> None:
    assert is_remote(data) is remote


def test_a_split_is_copied_once(small_shards: Path, serve: Any, tmp_path: Path) -> None:
    server = serve(small_shards)
    out = tmp_path / "copy"
    copied, original = fetch_split(server.url, "train", out), ShardDataset(small_shards, "train")
    assert copied.keys == original.keys
    assert all(copied.encoded(i) == original.encoded(i) for i in range(len(original)))
    for path in out.iterdir():  # the index too, which is made from the shard
        assert path.read_bytes() == (small_shards / path.name).read_bytes()
    assert sorted(path.name for path in out.glob("*.tar")) == [f"train-00000{i}.tar" for i in range(5)]
    assert server.asked == ["dataset.json", *(f"train-00000{i}.tar" for i in range(5))]
    server.asked.clear()
    fetch_split(server.url + "/", "train", out)
    assert server.asked == ["dataset.json"]
    # What is damaged is fetched again, and so is a lost index made.
    (out / "train-000003.tar").write_bytes(b"\0" * (out / "train-000003.tar").stat().st_size)
    (out / "train-000001.index.json").unlink()
    server.asked.clear()
    assert fetch_split(server.url, "train", out).encoded(16) == original.encoded(16)
    assert server.asked == ["dataset.json", "train-000003.tar"]


@pytest.mark.parametrize("form", ["file://{folder}", "pipe:cat {folder}/{{}}", "pipe:cat {folder}"])
def test_other_addresses(small_shards: Path, tmp_path: Path, form: str) -> None:
    dataset = fetch_split(form.format(folder=small_shards), "val", tmp_path / "copy")
    assert dataset.encoded(0) == ShardDataset(small_shards, "val").encoded(0)


def test_a_copy_goes_on_where_the_connection_breaks(folder: Path, serve: Any, tmp_path: Path) -> None:
    server = serve(folder)
    server.cut = {"val-000000.tar": [100, 2000], "dataset.json": [50]}
    dataset = fetch_split(server.url, "val", tmp_path / "copy")
    assert dataset.encoded(0) == ShardDataset(folder, "val").encoded(0)
    assert server.asked == ["dataset.json"] * 2 + ["val-000000.tar"] * 3


def test_a_changed_set_is_fetched_again(folder: Path, serve: Any, tmp_path: Path) -> None:
    server, out = serve(folder), tmp_path / "copy"
    before = RemoteSet(server.url).digest
    fetch_split(server.url, "val", out)
    edit(folder, lambda about: about.update(terms="changed"))
    assert RemoteSet(server.url).digest != before
    assert fetch_split(server.url, "val", out).info["terms"] == "changed"


def test_nothing_half_written_stays(folder: Path, serve: Any, tmp_path: Path) -> None:
    server, out = serve(folder), tmp_path / "copy"
    real = (folder / "val-000000.tar").read_bytes()
    expected = json.loads((folder / "dataset.json").read_text())["splits"]["val"]["shards"][0]["sha256"]

    def refused(message: str) -> None:
        with pytest.raises(DatasetError, match=message) as caught:
            fetch_split(server.url, "val", out)
        assert "\n" not in str(caught.value)
        assert list(out.iterdir()) == []

    (folder / "val-000000.tar").write_bytes(real[:-1] + b"x")
    refused(rf"/nyu/val-000000\.tar: sha256 [0-9a-f]{{64}}, dataset\.json says {expected}")
    (folder / "val-000000.tar").write_bytes(real + b"x")
    refused(rf"/nyu/val-000000\.tar: more than the {len(real)} bytes of dataset\.json")
    (folder / "val-000000.tar").write_bytes(real[:-1])
    refused(rf"/nyu/val-000000\.tar: {len(real) - 1} bytes, dataset\.json says {len(real)}, 5 times in a row")
    (folder / "val-000000.tar").unlink()
    refused(r"/nyu/val-000000\.tar: HTTP error, such as 404 \(not found\)$")


def test_a_shard_without_half_of_a_sample_is_no_split(folder: Path, tmp_path: Path) -> None:
    path = folder / "val-000000.tar"
    with tarfile.open(path) as tar:
        picture = next(member for member in tar if not member.name.endswith("depth.png"))
        tar.extractall(tmp_path, filter="data")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / picture.name, picture.name)

    def describe(about: dict[str, Any]) -> None:
        about["splits"]["val"]["shards"][0] |= {
            "bytes": path.stat().st_size,
            "sha256": connection.hashlib.sha256(path.read_bytes()).hexdigest(),
        }

    edit(folder, describe)
    with pytest.raises(DatasetError, match=rf"has the members {picture.name.split('.')[1]}$"):
        fetch_split(f"file://{folder}", "val", tmp_path / "copy")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///nowhere", r"file:///nowhere/dataset\.json: No such file or directory$"),
        ("s3://bucket/nyu", r"opens no s3://; give a command .*pipe:aws s3 cp s3://bucket/nyu/\{\} -'$"),
        ("pipe:nosuchcommand {}", r"pipe:nosuchcommand dataset\.json: no such command$"),
        ("pipe:exit 3 #", r"its command ended with code 3, 5 times in a row$"),
        ("pipe:echo hello #", r"pipe:echo hello #/dataset\.json is not JSON"),
        ("pipe:echo [] #", r"does not describe depthzoo-shards version 1$"),
    ],
)
def test_what_is_no_data_set(url: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        RemoteSet(url)
    assert "\n" not in str(caught.value)


def test_a_refused_connection_is_tried_again_and_said_so(capfd: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{closed_port()}/nyu"
    with pytest.raises(
        DatasetError, match=rf"{url}/dataset\.json: the connection was refused, 5 times in a row"
    ):
        RemoteSet(url)
    assert capfd.readouterr().err.count("the connection was refused; next attempt in 0 s") == 3


def test_a_missing_description_and_split(small_shards: Path, serve: Any, tmp_path: Path) -> None:
    server = serve(tmp_path)
    with pytest.raises(DatasetError, match=r"/nyu/dataset\.json: HTTP error, such as 404"):
        RemoteSet(server.url)
    assert server.asked == ["dataset.json"]  # it is no use to ask again
    with pytest.raises(DatasetError, match=r"/nyu has no split 'test'; it has: train, val"):
        fetch_split(serve(small_shards).url, "test", tmp_path)


def test_a_description_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.remote.LARGEST_DESCRIPTION", 1 << 20)
    with pytest.raises(DatasetError, match="too large"):
        RemoteSet("pipe:yes #")


@pytest.mark.parametrize(
    "name", ["../train.tar", "/etc/train.tar", "a b.tar", "x;reboot.tar", "-o.tar", "x.zip"]
)
def test_a_shards_name_is_only_a_name(folder: Path, tmp_path: Path, name: str) -> None:
    edit(folder, lambda about: about["splits"]["val"]["shards"][0].update(file=name))
    with pytest.raises(DatasetError, match="dataset.json names a shard"):
        fetch_split(f"file://{folder}", "val", tmp_path / "copy")


def test_a_silent_server_is_given_up(
    small_shards: Path, serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LOOK_MS", 10)
    monkeypatch.setattr(connection, "RETRIES", 1)
    server = serve(small_shards)
    server.silent.add("dataset.json")
    with pytest.raises(DatasetError, match=r"nothing came for 0 s, 2 times in a row"):
        RemoteSet(server.url)


def test_curl_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match="needs the command curl, which is not installed"):
        RemoteSet("http://127.0.0.1:1/nyu")


def test_webdataset_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DatasetError, match=r'run pip install "depthzoo\[stream\]"$'):
        fetch_split("file:///nowhere", "val", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(small_shards: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        fetch_split(f"file://{small_shards}", "val", tmp_path / "copy")
