"""One weights file: what is stored, that it comes back, and that nothing is ever half-loaded."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from depthzoo import weights
from depthzoo.weights import WeightsError
from train.cards import save

METRICS = {"protocol": "test", "per_image": {"abs_rel": 0.25}}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def rounded(model: nn.Module) -> nn.Module:
    """The model as a file of float16 matrices gives it back."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.copy_(p.half().float())
    return model


def test_what_is_stored(tmp_path: Path, tiny: Any) -> None:
    card = {"metrics": METRICS, "size": [64, 96], "file": "old", "sha256": "old", "bytes": 1}
    path = save(tiny(), tmp_path, "nyu-mse", card)
    assert path.name == f"tiny_nyu-mse-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.safetensors"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    stored = {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()}
    assert stored == {
        "conv.weight": torch.float16,
        "conv.bias": torch.float32,
        "norm.weight": torch.float32,
        "norm.bias": torch.float32,
        "norm.running_mean": torch.float32,
        "norm.running_var": torch.float32,
        "norm.num_batches_tracked": torch.int64,
        "grid": torch.float32,
    }
    expected = {"model": "tiny", "tag": "nyu-mse", "metrics": METRICS, "size": [64, 96]}
    assert weights.read_metadata(path) == expected


def test_equal_models_give_equal_files_and_a_reload_is_exact(tmp_path: Path, tiny: Any) -> None:
    first = save(tiny(), tmp_path / "a", "nyu", {"x": 1, "y": 2})
    model = tiny(seed=1)
    weights.load_into(model, first)
    assert same(model, rounded(tiny()))
    assert model.norm.num_batches_tracked.item() == 2**40 + 1
    second = save(model, tmp_path / "b", "nyu", {"y": 2, "x": 1})
    assert second.read_bytes() == first.read_bytes()


def test_load_state_is_float32_and_independent_of_the_file(tmp_path: Path, tiny: Any) -> None:
    path = save(tiny(), tmp_path, "nyu", {})
    state = weights.load_state(path)
    with open(path, "r+b") as file:  # in place, so that a mapping would show it
        file.write(b"\xff" * path.stat().st_size)
    assert {t.dtype for n, t in state.items() if n != "norm.num_batches_tracked"} == {torch.float32}
    assert torch.equal(state["conv.weight"], tiny().conv.weight.half().float())
    assert torch.equal(state["conv.bias"], tiny().conv.bias)


def test_tied_and_strided_tensors_are_saved(tmp_path: Path, tiny: Any) -> None:
    model = tiny()
    model.again = model.conv
    model.twin = nn.Module()
    model.twin.register_buffer("grid", model.grid)  # 1e6: float32 under both names, or it overflows
    with torch.no_grad():
        model.conv.weight = nn.Parameter(model.conv.weight.to(memory_format=torch.channels_last))
    state = weights.load_state(save(model, tmp_path, "nyu", {}))
    assert torch.equal(state["conv.weight"], tiny().conv.weight.half().float())
    assert torch.equal(state["again.weight"], state["conv.weight"])
    assert torch.equal(state["twin.grid"], state["grid"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("conv.bias", math.nan, "conv.bias"),
        ("norm.running_var", math.inf, "norm.running_var"),
        ("conv.weight", 1e5, r"conv.weight \(1e\+05 overflows float16\)"),
    ],
)
def test_non_finite_tensors_are_not_saved(
    tmp_path: Path, name: str, value: float, said: str, tiny: Any
) -> None:
    model = tiny()
    with torch.no_grad():
        model.state_dict()[name].fill_(value)
    with pytest.raises(WeightsError, match=f"tiny: not saved, non-finite values: {said}$"):
        save(model, tmp_path / "out", "nyu", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tag", "card", "said"),
    [
        ("DEFAULT", {}, "weights tag 'DEFAULT'"),
        ("v1.0", {}, "weights tag 'v1.0'"),
        ("nyu_mse", {}, "weights tag 'nyu_mse': expected small letters and digits, joined by hyphens"),
        ("nyu", {"model": "unet"}, "with a card of model 'unet'"),
        ("nyu", {"abs_rel": math.nan}, "the card is no JSON"),
        ("nyu", {"path": Path("x")}, "the card is no JSON"),
    ],
)
def test_bad_tags_and_cards_are_not_saved(
    tmp_path: Path, tag: str, card: dict[str, Any], said: str, tiny: Any, one_line: Any
) -> None:
    with pytest.raises(WeightsError, match=said) as error:
        save(tiny(), tmp_path / "out", tag, card)
    one_line(error)
    assert not (tmp_path / "out").exists()


def change(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def edit(state: dict[str, Tensor]) -> None:
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("conv.bias", None), "missing: conv.bias;"),
        (change("head.bias", torch.zeros(1)), "unexpected: head.bias;"),
        (
            change("conv.bias", torch.zeros(4)),
            r"another shape: conv.bias \(4,\) in the file and \(8,\) in the model;",
        ),
        (
            change("norm.num_batches_tracked", torch.tensor(0.5)),
            r"another kind: norm.num_batches_tracked torch.float32 in the file and torch.int64 in the model;",
        ),
        (change("conv.bias", torch.full((8,), math.nan)), "non-finite values: conv.bias;"),
        (
            change("norm.running_var", torch.full((8,), 1e300, dtype=torch.float64)),
            "non-finite.*norm.running_var",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_loaded(
    tmp_path: Path, edit: Any, said: str, tiny: Any, one_line: Any
) -> None:
    state = tiny(seed=1).state_dict()
    edit(state)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(state, path, {"depthzoo": json.dumps({"model": "unet"})})
    model = tiny()
    with pytest.raises(WeightsError, match=said) as error:
        weights.load_into(model, path)
    text = one_line(error)
    assert f"{path}: does not fit tiny, its header says that it is for 'unet'" in text
    assert "nothing was loaded" in text
    assert same(model, tiny())


def test_many_missing_tensors_are_counted(tmp_path: Path, tiny: Any) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    assert weights.read_metadata(path) == {}
    with pytest.raises(WeightsError, match=r"missing: (\S+, ){2}\S+ and 5 more; unexpected: a;"):
        weights.load_into(tiny(), path)


def pickled(path: Path, tiny: Any) -> None:
    torch.save(tiny().state_dict(), path)


def cut(path: Path, tiny: Any) -> None:
    path.write_bytes(save(tiny(), path.parent, "nyu", {}).read_bytes()[:-10])


def nothing(path: Path, tiny: Any) -> None:
    path.write_bytes(b"")


def garbage(path: Path, tiny: Any) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def missing(path: Path, tiny: Any) -> None:
    pass


def bad_header(path: Path, tiny: Any) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"depthzoo": "{half"})


def folder(path: Path, tiny: Any) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [pickled, cut, nothing, garbage, missing, bad_header, folder])
def test_unreadable_files(
    tmp_path: Path, make: Callable[[Path, Any], None], tiny: Any, one_line: Any
) -> None:
    path = tmp_path / "x.pth"
    make(path, tiny)
    model, says = tiny(), "no such file" if make is missing else "not a readable safetensors file"
    for read in (weights.read_metadata, weights.load_state, lambda p: weights.load_into(model, p)):
        with pytest.raises(WeightsError, match=f"x.pth: {says}") as error:
            read(path)
        one_line(error)
    assert same(model, tiny())
