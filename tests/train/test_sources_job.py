"""The writing job: the same for any number of workers, on after a kill, left alone when finished."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import crew, shard_job
from train.part_folder import JOB
from train.shard_job import prepare
from train.shards import ShardDataset
from train.sources.frames import Frame, FrameError, Item, Source, SourceError
from train.sources.pairs import Pairs

Run = Callable[..., int]
PER_SHARD = ("--samples-per-shard", 3)


@pytest.fixture
def folders(
    tmp_path: Path, picture_bytes: Callable[..., bytes], noise: Callable[..., np.ndarray]
) -> tuple[Path, Path]:
    """10 train, 2 val and 2 test frames: 4 + 1 + 1 shards of 3."""
    root = tmp_path / "pairs"
    for number, name in enumerate(
        [f"train/{n:02d}" for n in range(10)] + ["val/a", "val/b", "test/a", "test/b"]
    ):
        for kind in ("rgb", "depth"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "rgb" / f"{name}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
        depth = np.full((32, 48), 2000 + number, np.uint16)
        (root / "depth" / f"{name}.png").write_bytes(picture_bytes(depth))
    return root / "rgb", root / "depth"


@pytest.fixture
def arguments(folders: tuple[Path, Path], tmp_path: Path) -> list[object]:
    return ["pairs", *folders, "--scale", 0.001, "--size", "40x60", *PER_SHARD, "--out", tmp_path / "set"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_result_does_not_depend_on_workers(
    folders: tuple[Path, Path], tmp_path: Path, run_prepare: Run
) -> None:
    # A bad frame in the middle too: its place is the same.
    (folders[0] / "train/04.jpg").write_bytes(b"")
    for workers in (1, 2):
        common = ["pairs", *folders, "--scale", 0.001, "--size", "40x60", *PER_SHARD, "--max-bad", 0.1]
        assert run_prepare(*common, "--workers", workers, "--out", tmp_path / str(workers)) == 0
    one, two = content(tmp_path / "1"), content(tmp_path / "2")
    assert one == two
    assert {"samples.png", "dataset.json", "train-000003.tar", "train-000003.index.json"} <= one.keys()
    keys = ShardDataset(tmp_path / "2", "train").keys
    assert keys == ["00", "01", "02", "03", "05", "06", "07", "08", "09"]


def test_rooms_do_not_depend_on_workers(tmp_path: Path, run_prepare: Run) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run_prepare("rooms", "--count", 6, "--size", "32x48", "--workers", workers, "--out", out) == 0
    assert content(tmp_path / "1") == content(tmp_path / "2")


KILLED = """
import os, signal, sys
from pathlib import Path
from train import shards
from train.arguments import command
from train.prepare import parser, run

finish = shards.ShardWriter._finish_shard
def kill_in_the_third(self):
    if (Path(self.folder) / "train-000001.tar").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self)
shards.ShardWriter._finish_shard = kill_in_the_third
command(parser(), run, sys.argv[1:])
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_resume_after_a_kill(
    arguments: list[Any], tmp_path: Path, root: Path, run_prepare: Run, monkeypatch: Any, workers: int
) -> None:
    command = [sys.executable, "-c", KILLED, *map(str, arguments), "--workers", str(workers)]
    # The pipe closes when the workers are gone too: none outlives the killed process.
    killed = subprocess.run(command, cwd=root, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    part, out = tmp_path / "set.part", tmp_path / "set"
    assert not out.exists() and (part / "train-000002.tar.part").exists()
    kept = {name: (part / name).stat() for name in ("train-000000.tar", "train-000001.tar")}
    encoded: list[str] = []
    encode = crew.encode
    monkeypatch.setattr(crew, "encode", lambda f, *args: encoded.append(f.key) or encode(f, *args))
    assert run_prepare(*arguments, "--workers", 1) == 0
    assert encoded == ["06", "07", "08", "09", "a", "b", "a", "b"]
    for name, before in kept.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    monkeypatch.undo()
    fresh = tmp_path / "fresh"
    assert run_prepare(*arguments[:-1], fresh, "--workers", 1) == 0
    assert content(out) == content(fresh)
    assert not part.exists()


def interrupted(items: Iterator[Any], after: int, error: BaseException) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number == after:
            raise error
        yield item


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Makes the job fail before a frame."""

    def arrange(after: int, error: BaseException) -> None:
        encoded = crew.Crew.encoded
        monkeypatch.setattr(
            crew.Crew, "encoded", lambda self, items: interrupted(encoded(self, items), after, error)
        )

    return arrange


def test_ctrl_c_and_a_full_disk_keep_what_is_finished(
    arguments: list[Any],
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    interrupt: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(4, KeyboardInterrupt())
    assert run_prepare(*arguments, "--workers", 2) == 130
    assert "keeps the finished shards" in capsys.readouterr().err
    part = tmp_path / "set.part"
    assert sorted(path.name for path in part.glob("*.tar*")) == ["train-000000.tar"]
    monkeypatch.undo()
    interrupt(4, OSError(28, "No space left on device"))
    assert run_prepare(*arguments, "--workers", 1) == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in part.glob("*.tar*")) == ["train-000000.tar", "train-000001.tar"]


def test_nothing_is_left_when_no_shard_was_finished(
    arguments: list[Any], tmp_path: Path, run_prepare: Run, interrupt: Callable[[int, BaseException], None]
) -> None:
    interrupt(2, KeyboardInterrupt())
    assert run_prepare(*arguments, "--workers", 1) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_other_arguments_do_not_continue_an_unfinished_set(
    arguments: list[Any],
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    interrupt: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(4, KeyboardInterrupt())
    run_prepare(*arguments, "--workers", 1)
    monkeypatch.undo()
    other = [*arguments, "--workers", 1, "--focal", 77]
    assert run_prepare(*other) == 2
    assert "focal None, now 77.0; --overwrite drops it" in capsys.readouterr().err
    assert run_prepare(*other, "--overwrite") == 0
    assert ShardDataset(tmp_path / "set", "train").focal_px == pytest.approx(77 * 60 / 48)


def test_a_finished_set_is_left_as_it_is(
    arguments: list[Any],
    folders: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "set"
    assert run_prepare(*arguments) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert run_prepare(*arguments) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 and "10 train, 2 val, 2 test (already there" in said.out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    assert run_prepare(*arguments, "--size", "48x64") == 2
    assert "size [40, 60], now [48, 64]; --overwrite replaces it" in capsys.readouterr().err
    file = folders[0] / "train/03.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    assert run_prepare(*arguments) == 2
    assert "the source's files have changed since" in capsys.readouterr().err
    file.write_bytes(whole)
    (out / "val-000000.tar").write_bytes(b"")
    assert run_prepare(*arguments) == 2
    assert "val-000000.tar has 0 bytes" in capsys.readouterr().err
    assert run_prepare(*arguments, "--overwrite") == 0
    assert len(ShardDataset(out, "val")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "set"]


def test_a_part_folder_of_somebody_else_is_left(
    arguments: list[Any], tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part" / "notes").write_text("dear")
    assert run_prepare(*arguments) == 2
    assert "is no unfinished data set" in capsys.readouterr().err
    assert (tmp_path / "set.part" / "notes").read_text() == "dear"


class Odd(Source):
    """Frames made up here; some are told to misbehave."""

    name = "odd"

    def __init__(self, count: int, bad: tuple[int, ...] = (), die: bool = False, focal: int = 0) -> None:
        self.count, self.bad, self.die, self.focal = count, bad, die, focal
        self.arguments, self.about = {}, {}
        self.maker = os.getpid()

    def items(self) -> list[Item]:
        return [Item("train", f"f{number}", number) for number in range(self.count)]

    def load(self, item: Item, handle: Any) -> Frame:
        if self.die and item.where == self.count - 1 and os.getpid() != self.maker:
            os._exit(9)
        if item.where in self.bad:
            raise FrameError("scratched")
        focal = 100.0 + self.focal * item.where
        image = np.zeros((32, 32, 3), np.uint8)
        return Frame("train", item.key, image, np.full((32, 32), 2.0), focal)


@pytest.mark.parametrize(("bad", "written"), [((), 200), ((3,), 199), ((3, 150), 198)])
def test_bad_frames_within_the_share(tmp_path: Path, bad: tuple[int, ...], written: int) -> None:
    assert prepare(Odd(200, bad), tmp_path / "set", samples_per_shard=50)[0] == {"train": written}
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert info.get("skipped", []) == [f"train sample 'f{number}': scratched" for number in bad]


def test_one_bad_frame_more_stops_and_a_larger_share_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Odd(200, (3, 150, 151))
    says = r"train sample 'f151': scratched \(3 of 200 frames cannot be used, --max-bad allows 2\)"
    with pytest.raises(SourceError, match=says):
        prepare(source, tmp_path / "set", samples_per_shard=50)
    assert len(list((tmp_path / "set.part" / JOB).glob("train-*"))) == 3
    assert prepare(source, tmp_path / "set", samples_per_shard=50, max_bad=0.02)[0] == {"train": 197}
    assert "3 of 200" not in capsys.readouterr().err
    assert len(json.loads((tmp_path / "set/dataset.json").read_text())["skipped"]) == 3


def test_a_dead_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a worker process died"):
        prepare(Odd(40, die=True), tmp_path / "set", workers=2, samples_per_shard=100)
    assert not list(tmp_path.iterdir())


def test_two_cameras_in_train(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"'f1': focal length 102\.0 px, others 100\.0 px; expected one camera"
    ):
        prepare(Odd(5, focal=2), tmp_path / "set")


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the source odd has no frames"):
        prepare(Odd(0), tmp_path / "set")


def test_the_unit_is_judged_by_all_splits_and_all_frames(
    folders: tuple[Path, Path], tmp_path: Path, picture_bytes: Callable[..., bytes], monkeypatch: Any
) -> None:
    for path in (folders[1] / "val").iterdir():  # centimetres in one split
        path.write_bytes(picture_bytes(np.full((32, 48), 250, np.uint16)))
    with pytest.raises(SourceError, match=r"^val \(2 of 2 frames\): median depth 0\.25 .* scale is 0\.01"):
        prepare(Pairs(*folders, 0.001), tmp_path / "set")
    monkeypatch.setattr(shard_job, "UNIT_SAMPLE", 0)
    with pytest.raises(SourceError, match=r"^all val frames: median depth 0\.25"):
        prepare(Pairs(*folders, 0.001), tmp_path / "set")
