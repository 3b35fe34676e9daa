"""The two tables: names, duplicates, unknown names."""

from collections.abc import Callable

import pytest

import depthzoo
from depthzoo.registry import LOSSES, MODELS, Registry, closest

SIX = [
    "dispnet_vgg16",
    "unet",
    "unet_bilinear",
    "unet_mobilenet_v3",
    "unet_resnet50",
    "unet_resnet50_heavy",
]


def builder(name: str) -> Callable[..., object]:
    def build(**options: object) -> object:
        return name, options

    build.__name__ = name
    return build


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (MODELS, LOSSES):
        monkeypatch.setattr(table, "_builders", {})


def test_the_six_models() -> None:
    assert depthzoo.list_models() == SIX
    assert all(MODELS.get(name) is getattr(depthzoo, name) for name in SIX)


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
        (depthzoo.register_loss, depthzoo.list_losses, depthzoo.create_loss),
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
    with pytest.raises(ValueError, match=r"model 'unet' is registered already, by depthzoo\.models\.unet"):
        depthzoo.register_model(builder("unet"))
    with pytest.raises(ValueError, match=r"loss 'silog' is registered already, by depthzoo\.losses"):
        depthzoo.register_loss(builder("silog"))
    assert MODELS.get("unet") is depthzoo.unet
    # Models and losses are two tables.
    table = Registry("model")
    table.register(builder("silog"))
    assert table.names() == ["silog"]


def test_unknown_model_has_the_closest_names() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown model 'unet_resnet5': did you mean 'unet_resnet50', "
    ) as error:
        depthzoo.create_model("unet_resnet5")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="there are: " + ", ".join(SIX)):
        depthzoo.create_model("xyzzy", weights=None)


def test_closest() -> None:
    assert closest("nyu-combind", ["nyu-mse", "nyu-combined"]) == "did you mean 'nyu-combined', 'nyu-mse'?"
    assert closest("x", ["beta", "alpha"]) == "there are: alpha, beta"
    assert closest("x", []) == "there are: none"
