"""Weights: the manifest, finding and downloading a file, reading and writing one."""

import contextlib
import hashlib
import http.server
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from depthzoo import weights
from depthzoo.errors import WeightsError
from depthzoo.models import list_models


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


class TestManifest:
    def test_as_it_is(self) -> None:
        assert list_models(pretrained=True)
        for model in list_models(pretrained=True):
            for tag in weights.tags(model):
                card = weights.card(model, tag)
                assert (card["model"], card["tag"]) == (model, tag)
                assert card["file"] == f"{model}_{tag}-{card['sha256'][:8]}.safetensors"
                # torch.hub finds the digits too.
                assert torch.hub.HASH_REGEX.search(card["file"]).group(1) == card["sha256"][:8]

    def test_every_entry_is_part_of_its_card(self) -> None:
        for model, entries in json.loads(weights.MANIFEST.read_text()).items():
            for tag, entry in entries.items():
                card = json.loads((weights.BUNDLED / entry["file"]).with_suffix(".json").read_text())
                assert weights.card(model, tag) == card
                for key in set(entry) - {"metrics"}:
                    assert entry[key] == card[key]
                metrics = entry["metrics"]["per_image"]
                assert metrics and metrics.items() <= card["metrics"]["per_image"].items()

    def test_the_first_tag_is_the_default(self, zoo: Any) -> None:
        zoo.add("a-first")
        assert weights.tags("tiny") == ("nyu", "a-first") and weights.tags("other") == ()
        expected = {"model": "tiny", "tag": "nyu", **zoo.entry}
        assert weights.card("tiny") == weights.card("tiny", "nyu") == expected
        assert weights.card("tiny", "a-first")["tag"] == "a-first"


class TestFind:
    @pytest.mark.parametrize(
        ("model", "tag", "said"),
        [
            ("unet", "DEFAULT", r"unet: no trained weights.*: tiny; weights=None builds it untrained$"),
            ("tiny", "nyuu", r"tiny: unknown weights 'nyuu': did you mean 'nyu'\?"),
            ("tiny", "runs/gone", "runs/gone: weights file does not exist"),
            ("tiny", "gone.pth", "gone.pth: weights file does not exist"),
            ("tiny", True, "must be 'DEFAULT', a tag, a path or None, not True"),
        ],
    )
    def test_what_there_is_not(self, zoo: Any, model: str, tag: Any, said: str, one_line: Any) -> None:
        with pytest.raises(WeightsError, match=said) as error:
            weights.find(model, tag)
        one_line(error)

    def test_paths(self, zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = tmp_path / "mine"
        mine.write_bytes(b"anything: a path is not looked into")
        assert weights.find("tiny", mine) == weights.find("any model", str(mine)) == mine
        monkeypatch.chdir(tmp_path)
        assert weights.find("tiny", "mine") == Path("mine")
        # A known tag wins over a file of that name; an explicit path is a path.
        Path("nyu").write_bytes(b"")
        assert weights.find("tiny", Path("nyu")) == Path("nyu")
        (zoo.bundled / zoo.file).write_bytes(zoo.good)
        assert weights.find("tiny", "nyu") == zoo.bundled / zoo.file

    def test_a_run_folder(self, zoo: Any, tmp_path: Path) -> None:
        run = tmp_path / "runs" / "mine"
        run.mkdir(parents=True)
        with pytest.raises(WeightsError, match=r"is a folder without model\.safetensors"):
            weights.find("tiny", run)
        (run / "model.safetensors").write_bytes(zoo.good)
        assert weights.find("tiny", run) == weights.find("tiny", str(run)) == run / "model.safetensors"
        assert weights.model_of(run) == weights.model_of(run / "model.safetensors") == "tiny"

    def test_the_checkout_comes_before_the_cache(self, zoo: Any) -> None:
        zoo.cached.parent.mkdir(parents=True)
        zoo.cached.write_bytes(zoo.good)
        assert weights.find("tiny", "DEFAULT") == zoo.cached
        (zoo.bundled / zoo.file).write_bytes(zoo.good)
        assert weights.find("tiny", "DEFAULT") == zoo.bundled / zoo.file

    @pytest.mark.parametrize("place", ["cached", "bundled"])
    def test_a_local_file_with_another_digest(self, zoo: Any, place: str, one_line: Any) -> None:
        path = zoo.cached if place == "cached" else zoo.bundled / zoo.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"wrong")
        with pytest.raises(WeightsError, match="delete it to download a good one") as error:
            weights.find("tiny", "nyu")
        text = one_line(error)
        assert str(path) in text and hashlib.sha256(b"wrong").hexdigest() in text and zoo.sha256 in text
        assert path.read_bytes() == b"wrong"


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, int], list[str]]]:
    """Start a server for the release that sends some bytes, and return the paths that it is asked for."""
    with contextlib.ExitStack() as stack:

        def start(content: bytes, announced: int = 0, status: int = 200) -> list[str]:
            asked: list[str] = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    asked.append(self.path)
                    self.send_response(status)
                    self.send_header("Content-Length", str(announced or len(content)))
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, *args: object) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/release/")
            return asked

        yield start


class TestDownload:
    def test_into_the_cache_once(self, zoo: Any, serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
        asked = serve(zoo.good)
        for _ in range(2):
            assert weights.find("tiny", "DEFAULT") == zoo.cached
        assert asked == [f"/release/{zoo.file}"]
        assert zoo.in_cache() == [zoo.file] and zoo.cached.read_bytes() == zoo.good
        assert capfd.readouterr().err == ""  # no bar without a terminal

    def test_progress_bar(self, zoo: Any, capfd: pytest.CaptureFixture[str]) -> None:
        weights.find("tiny", "DEFAULT", progress=True)
        assert "100%" in capfd.readouterr().err

    @pytest.mark.parametrize("fault", ["cut", "changed", "longer", "broken off", "empty"])
    def test_a_bad_file_names_both_digests_and_is_not_kept(
        self, zoo: Any, serve: Any, fault: str, one_line: Any
    ) -> None:
        good = zoo.good
        sent = {"cut": good[:-10], "changed": good[:-1] + bytes([good[-1] ^ 1]), "longer": good + b"more"}
        sent |= {"broken off": good[: len(good) // 2], "empty": b""}
        serve(sent[fault], announced=len(good) if fault == "broken off" else 0)
        with pytest.raises(
            WeightsError, match=rf"^cannot download http.*/{zoo.file}: .*weights=None"
        ) as error:
            weights.find("tiny", "nyu")
        # Newer Pythons may notice themselves that a connection broke off.
        assert fault == "broken off" or zoo.sha256 in one_line(error)
        assert zoo.in_cache() == []

    @pytest.mark.parametrize(
        ("mirror", "said"),
        [
            ("http://127.0.0.1:9/release", "cannot download"),
            ("somewhere", "unknown url type"),
            (None, "HTTP 404"),
        ],
    )
    def test_a_mirror_that_does_not_answer(
        self,
        zoo: Any,
        serve: Any,
        monkeypatch: pytest.MonkeyPatch,
        mirror: str | None,
        said: str,
        one_line: Any,
    ) -> None:
        serve(b"", status=404)
        if mirror:
            monkeypatch.setenv("DEPTHZOO_WEIGHTS_URL", mirror)
        with pytest.raises(WeightsError, match=said) as error:
            weights.find("tiny", "DEFAULT")
        text = one_line(error)
        assert zoo.file in text and f"put the file at {zoo.cached}" in text
        assert zoo.file not in zoo.in_cache()

    def test_a_cache_that_cannot_be_made(self, zoo: Any, one_line: Any) -> None:
        zoo.hub.write_text("a file where the folder should be")
        with pytest.raises(WeightsError, match="cannot download") as error:
            weights.find("tiny", "DEFAULT")
        assert str(zoo.cached) in one_line(error)


class TestSave:
    def test_matrices_are_half_and_the_rest_is_float32(self, tmp_path: Path, tiny: Any) -> None:
        path = tmp_path / "new" / "tiny.safetensors"
        weights.save_weights(path, tiny().state_dict(), {"model": "tiny", "size": [64, 96]})
        assert {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()} == {
            "conv.weight": torch.float16,
            "conv.bias": torch.float32,
            "norm.weight": torch.float32,
            "norm.bias": torch.float32,
            "norm.running_mean": torch.float32,
            "norm.running_var": torch.float32,
            "norm.num_batches_tracked": torch.int64,
        }
        assert weights.read_metadata(path) == {"model": "tiny", "size": [64, 96]}
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        weights.save_weights(path, tiny().state_dict(), {}, half=False)
        assert same(tiny(), self.loaded(tiny(1), path))

    def loaded(self, model: nn.Module, path: Path) -> nn.Module:
        weights.load_into(model, path)
        return model

    def test_equal_models_give_equal_files_and_a_reload_is_exact(self, tmp_path: Path, tiny: Any) -> None:
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        weights.save_weights(first, tiny().state_dict(), {"x": 1, "y": 2})
        model = self.loaded(tiny(1), first)
        assert torch.equal(model.conv.weight, tiny().conv.weight.half().float())
        assert torch.equal(model.conv.bias, tiny().conv.bias)
        assert model.norm.num_batches_tracked.item() == 2**40 + 1
        weights.save_weights(second, model.state_dict(), {"y": 2, "x": 1})
        assert second.read_bytes() == first.read_bytes()

    def test_tied_and_strided_tensors(self, tmp_path: Path, tiny: Any) -> None:
        state = tiny().state_dict()
        state["again"] = state["conv.weight"] = state["conv.weight"].to(memory_format=torch.channels_last)
        weights.save_weights(tmp_path / "a.safetensors", state, {})
        stored = safetensors.torch.load_file(tmp_path / "a.safetensors")
        assert torch.equal(stored["again"], tiny().conv.weight.half())
        assert torch.equal(stored["again"], stored["conv.weight"])

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("conv.bias", math.nan, "conv.bias"),
            ("norm.running_var", math.inf, "norm.running_var"),
            ("conv.weight", 1e5, r"conv.weight \(1e\+05 overflows float16\)"),
        ],
    )
    def test_not_what_is_not_finite(
        self, tmp_path: Path, name: str, value: float, said: str, tiny: Any
    ) -> None:
        state = tiny().state_dict()
        state[name].fill_(value)
        with pytest.raises(WeightsError, match=f"not saved, non-finite values: {said}$"):
            weights.save_weights(tmp_path / "out" / "a.safetensors", state, {})
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("card", [{"abs_rel": math.nan}, {"path": Path("x")}])
    def test_not_with_a_card_that_is_not_json(
        self, tmp_path: Path, card: Any, tiny: Any, one_line: Any
    ) -> None:
        with pytest.raises(WeightsError, match="the card is not JSON") as error:
            weights.save_weights(tmp_path / "out" / "a.safetensors", tiny().state_dict(), card)
        one_line(error)
        assert not (tmp_path / "out").exists()


class TestLoad:
    @pytest.mark.parametrize(
        ("name", "tensor", "said"),
        [
            ("conv.bias", None, "missing: conv.bias;"),
            ("head.bias", torch.zeros(1), "unexpected: head.bias;"),
            (
                "conv.bias",
                torch.zeros(4),
                r"another shape: conv.bias \(4,\) in the file and \(8,\) in the model;",
            ),
            ("conv.bias", torch.full((8,), math.nan), "non-finite values: conv.bias;"),
            (
                "norm.running_var",
                torch.full((8,), 1e300, dtype=torch.float64),
                "non-finite.*norm.running_var",
            ),
        ],
    )
    def test_what_does_not_fit_is_named_and_nothing_loaded(
        self, tmp_path: Path, name: str, tensor: Tensor | None, said: str, tiny: Any, one_line: Any
    ) -> None:
        state = {key: value for key, value in tiny(1).state_dict().items() if key != name}
        path = tmp_path / "x.safetensors"
        safetensors.torch.save_file(
            state | ({} if tensor is None else {name: tensor}),
            path,
            {"depthzoo": json.dumps({"model": "unet"})},
        )
        model = tiny()
        with pytest.raises(WeightsError, match=said) as error:
            weights.load_into(model, path)
        text = one_line(error)
        assert f"{path}: does not fit tiny, its header says that it is for 'unet'" in text
        assert "nothing was loaded" in text and same(model, tiny())

    def test_many_missing_tensors_are_counted(self, tmp_path: Path, tiny: Any) -> None:
        path = tmp_path / "x.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(1)}, path)
        assert weights.read_metadata(path) == {}
        with pytest.raises(WeightsError, match="does not say which model it is for"):
            weights.model_of(path)
        with pytest.raises(WeightsError, match=r"missing: (\S+, ){2}\S+ and 4 more; unexpected: a;"):
            weights.load_into(tiny(), path)

    @pytest.mark.parametrize(
        "kind", ["pickled", "cut", "empty", "garbage", "missing", "bad header", "folder"]
    )
    def test_unreadable_files(self, tmp_path: Path, kind: str, tiny: Any, one_line: Any) -> None:
        path = tmp_path / "x.pth"
        if kind == "pickled":
            torch.save(tiny().state_dict(), path)
        elif kind == "cut":
            weights.save_weights(path, tiny().state_dict(), {})
            os.truncate(path, path.stat().st_size - 10)
        elif kind == "bad header":
            safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"depthzoo": "{half"})
        elif kind == "folder":
            path.mkdir()
        elif kind != "missing":
            path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 8)
        model, says = tiny(), "no such file" if kind == "missing" else "not a readable safetensors file"
        for read in (weights.read_metadata, lambda p: weights.load_into(model, p)):
            with pytest.raises(WeightsError, match=f"x.pth: {says}") as error:
                read(path)
            one_line(error)
        assert same(model, tiny())
