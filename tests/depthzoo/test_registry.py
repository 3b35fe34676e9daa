"""The two tables: names, duplicates, unknown names."""

from collections.abc import Callable

import pytest

import depthzoo
from depthzoo import losses
from depthzoo.errors import suggest
from depthzoo.models import _api, get_builder

SIX = [
    "dispnet_vgg16",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]


def builder(name: str) -> Callable[..., object]:
    def build(weights: object = None, head: object = None, x: object = None) -> object:
        return name, {"weights": weights, "head": head, "x": x}

    build.__name__ = name
    return build


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_api, "BUILDERS", {})
    monkeypatch.setattr(losses, "LOSSES", {})


def test_the_six_models() -> None:
    assert depthzoo.list_models() == SIX
    assert all(get_builder(name) is getattr(depthzoo, name) for name in SIX)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*resnet*", SIX[4:]),
        ("unet", ["unet"]),
        ("unet*", SIX[1:]),
        ("UNET*", []),
        ("*_v[13]*", [SIX[3]]),
    ],
)
def test_patterns_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    assert depthzoo.list_models(pattern) == names


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("register", "names", "create"),
    [
        (depthzoo.register_model, depthzoo.list_models, depthzoo.create_model),
        (lambda b: depthzoo.register_loss(b.__name__)(b), depthzoo.list_losses, depthzoo.create_loss),
    ],
    ids=["model", "loss"],
)
def test_registering_gives_the_builder_back_and_enters_it(
    register: Callable, names: Callable, create: Callable
) -> None:
    second, first = builder("b_second"), builder("a_first")
    assert register(second) is second
    assert register(first) is first
    assert names() == ["a_first", "b_second"]
    assert create("a_first", head="linear")[0] == "a_first"
    assert create("a_first", head="linear")[1]["head"] == "linear"


@pytest.mark.usefixtures("empty")
def test_weights_are_default_unless_something_else_is_said() -> None:
    depthzoo.register_model(builder("one"))
    assert depthzoo.create_model("one") == ("one", {"weights": "DEFAULT"})
    assert depthzoo.create_model("one", weights=None, x=1) == ("one", {"weights": None, "x": 1})


def test_duplicates_raise_and_change_nothing() -> None:
    with pytest.raises(ValueError, match=r"model 'unet' is already registered, by depthzoo\.models\.unet"):
        depthzoo.register_model(builder("unet"))
    with pytest.raises(ValueError, match=r"loss 'silog' is already registered, by depthzoo\.losses"):
        depthzoo.register_loss("silog")(builder("silog"))
    assert get_builder("unet") is depthzoo.unet


def test_unknown_model_has_the_closest_names() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown model 'unet_resnet5': did you mean 'unet_resnet50', "
    ) as error:
        depthzoo.create_model("unet_resnet5")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="there are: " + ", ".join(SIX)):
        depthzoo.create_model("xyzzy", weights=None)


def test_closest() -> None:
    assert suggest("nyu-combind", ["nyu-mse", "nyu-combined"]) == "did you mean 'nyu-combined', 'nyu-mse'?"
    assert suggest("x", ["beta", "alpha"]) == "there are: alpha, beta"
    assert suggest("x", []) == "there are: none"
