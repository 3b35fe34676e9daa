"""Finding weights: the table, the checkout, the cache, paths; and entering new ones."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from depthzoo import weights
from depthzoo.models import list_models
from depthzoo.weights import WeightsError
from train.cards import publish, save


def test_the_table_lists_tags_default_first(zoo: Any, tiny: Any) -> None:
    for tag in ("a-first", "z-last"):
        path = save(tiny(), zoo.shelf, tag, {})
        publish(path, weights.read_metadata(path), zoo.shelf, zoo.manifest)
    assert list_models(pretrained=True) == ["tiny"]
    assert weights.tags("tiny") == ("nyu", "a-first", "z-last")
    assert weights.tags("other") == ()
    assert weights.card("tiny") == weights.card("tiny", "nyu") == zoo.card
    assert weights.card("tiny", "z-last")["tag"] == "z-last"


def test_the_shipped_table_is_whole() -> None:
    for model in list_models(pretrained=True):
        for tag in weights.tags(model):
            card = weights.card(model, tag)
            assert (card["model"], card["tag"]) == (model, tag)
            assert card["file"] == f"{model}_{tag}-{card['sha256'][:8]}.safetensors"
            assert torch.hub.HASH_REGEX.search(card["file"]).group(1) == card["sha256"][:8]
            assert card["bytes"] > 0


def test_default_without_weights_names_the_way_out(zoo: Any, one_line: Any) -> None:
    with pytest.raises(WeightsError, match=r"unet: no trained weights.*weights=None.*: tiny$") as error:
        weights.find("unet", "DEFAULT")
    one_line(error)


def test_an_unknown_tag_gets_the_closest(zoo: Any, one_line: Any) -> None:
    with pytest.raises(WeightsError, match=r"tiny: unknown weights 'nyuu': did you mean 'nyu'\?") as error:
        weights.find("tiny", "nyuu")
    one_line(error)


@pytest.mark.parametrize("name", ["gone.safetensors", "runs/gone", "gone.pth"])
def test_a_path_that_does_not_exist(zoo: Any, name: str, one_line: Any) -> None:
    with pytest.raises(WeightsError, match=f"{name}: weights file does not exist") as error:
        weights.find("tiny", name)
    one_line(error)


def test_what_is_no_weights_at_all(zoo: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="must be 'DEFAULT', a tag, a path or None, not True"):
        weights.find("tiny", True)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"is a folder without model\.safetensors"):
        weights.find("tiny", tmp_path)


def test_paths_of_every_kind(zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"anything: a path is not looked into")
    assert weights.find("tiny", mine) == mine
    assert weights.find("any model", str(mine)) == mine
    monkeypatch.chdir(tmp_path)
    assert weights.find("tiny", "mine") == Path("mine")
    # A known tag wins over a file that happens to be called so; an explicit path does not lose.
    (tmp_path / "nyu").write_bytes(b"")
    assert weights.find("tiny", Path("nyu")) == Path("nyu")
    (zoo.bundled / zoo.card["file"]).write_bytes(zoo.good)
    assert weights.find("tiny", "nyu") == zoo.bundled / zoo.card["file"]


def test_a_runs_folder_is_its_best_weights(zoo: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(zoo.good)
    assert weights.find("tiny", run) == weights.find("tiny", str(run)) == run / "model.safetensors"
    assert weights.model_of(run) == weights.model_of(run / "model.safetensors") == "tiny"


def test_only_a_path_with_a_known_name_is_verified(zoo: Any, tmp_path: Path, one_line: Any) -> None:
    known, renamed = tmp_path / zoo.card["file"], tmp_path / "tiny_mine-00000000.safetensors"
    for path in (known, renamed):
        path.write_bytes(zoo.good + b"edited")
    assert weights.find("tiny", renamed) == renamed
    with pytest.raises(WeightsError, match="rename it") as error:
        weights.find("tiny", known)
    assert zoo.card["sha256"] in one_line(error)


def test_the_checkout_comes_before_the_cache(zoo: Any) -> None:
    zoo.cached.parent.mkdir(parents=True)
    zoo.cached.write_bytes(zoo.good)
    assert weights.find("tiny", "DEFAULT") == zoo.cached
    (zoo.bundled / zoo.card["file"]).write_bytes(zoo.good)
    assert weights.find("tiny", "DEFAULT") == zoo.bundled / zoo.card["file"]


@pytest.mark.parametrize("place", ["cached", "bundled"])
def test_a_local_file_with_another_digest(zoo: Any, place: str, one_line: Any) -> None:
    path = zoo.cached if place == "cached" else zoo.bundled / zoo.card["file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"wrong")
    with pytest.raises(WeightsError, match=r"delete it to download a good one") as error:
        weights.find("tiny", "nyu")
    text = one_line(error)
    assert str(path) in text
    assert hashlib.sha256(b"wrong").hexdigest() in text
    assert zoo.card["sha256"] in text
    assert path.read_bytes() == b"wrong"


def test_publish_writes_card_and_table(zoo: Any, tmp_path: Path, tiny: Any) -> None:
    run = tmp_path / "run"
    path = save(tiny(seed=3), run, "rooms", {"metrics": {"abs_rel": 0.25}})
    path = path.rename(run / "model.safetensors")
    card = weights.read_metadata(path) | {"note": "more than the header"}
    written = publish(path, card, zoo.shelf, zoo.manifest, default=True)
    full = weights.card("tiny", "rooms")
    assert weights.tags("tiny") == ("rooms", "nyu")
    assert full == card | {
        "file": f"tiny_rooms-{full['sha256'][:8]}.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    assert written == (zoo.shelf / full["file"]).with_suffix(".json")
    assert (zoo.shelf / full["file"]).read_bytes() == path.read_bytes()
    assert written.read_text() == json.dumps(full, indent=2, sort_keys=True) + "\n"
    table = {"tiny": {"default": "rooms", "tags": {"nyu": zoo.card, "rooms": full}}}
    assert zoo.manifest.read_text() == json.dumps(table, indent=2, sort_keys=True) + "\n"
    # Once more, from its place: nothing changes.
    publish(zoo.shelf / full["file"], full, zoo.shelf, zoo.manifest)
    assert zoo.manifest.read_text() == json.dumps(table, indent=2, sort_keys=True) + "\n"
    assert len(list(zoo.shelf.iterdir())) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sha256": "0" * 64}, "card says sha256 '0000"),
        ({"bytes": 1}, "card says bytes 1"),
        ({"file": "other.safetensors"}, "card says file 'other.safetensors'"),
        ({"tag": "rooms"}, "card says tag 'rooms', the file 'nyu'"),
        ({"model": "unet"}, "card says model 'unet', the file 'tiny'"),
        ({"abs_rel": math.nan}, "no JSON"),
    ],
)
def test_publish_refuses_the_card_of_another_file(
    zoo: Any, wrong: dict[str, Any], said: str, one_line: Any
) -> None:
    before = {p: p.read_bytes() for p in (zoo.manifest, *zoo.shelf.iterdir())}
    path = zoo.shelf / zoo.card["file"]
    card = {key: value for key, value in zoo.card.items() if key not in ("file", "sha256", "bytes")}
    with pytest.raises(WeightsError, match=said) as error:
        publish(path, card | wrong, zoo.shelf, zoo.manifest)
    one_line(error)
    assert before == {p: p.read_bytes() for p in (zoo.manifest, *zoo.shelf.iterdir())}
