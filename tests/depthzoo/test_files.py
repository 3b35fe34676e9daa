"""Atomic writes and the wording of errors."""

import json
import urllib.error
from pathlib import Path

import pytest

from depthzoo.errors import one_line, reworded, suggest
from depthzoo.files import atomic_write, sha256_of, write_json


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    for interruption in (ValueError, KeyboardInterrupt):
        with pytest.raises(interruption), atomic_write(path) as temporary:
            temporary.write_text("half")
            raise interruption
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"] and path.read_text() == "second"


def test_json_and_digest(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2.5]})
    assert (tmp_path / "a.json").read_text() == json.dumps({"a": [2.5], "b": 1}, indent=2) + "\n"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_suggestions() -> None:
    assert suggest("nyu-combind", ["nyu-mse", "nyu-combined"]) == "did you mean 'nyu-combined', 'nyu-mse'?"
    assert suggest("x", ["beta", "alpha"]) == "there are: alpha, beta"
    assert suggest("x", []) == "there are: none"


def test_errors_in_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(OSError(28, "No space left on device")) == "No space left on device"
    assert one_line(urllib.error.URLError(OSError(111, "Connection refused"))) == "Connection refused"


def test_reworded_errors_keep_their_type_where_they_can() -> None:
    assert type(reworded(FileNotFoundError(2, "gone"), "a: gone")) is FileNotFoundError
    error = reworded(UnicodeEncodeError("utf-8", "x", 0, 1, "why"), "image 1: why")
    assert isinstance(error, ValueError) and str(error) == "image 1: why"
