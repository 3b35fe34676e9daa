"""Every model of the zoo against the contract; sizes are small, the widest model is slow."""

import copy
import inspect
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depthzoo
from depthzoo.models.base import DepthModel

# Counted by hand or published: exact where a design is.
PARAMETERS = {
    "unet": (31_030_000, 31_050_000),
    "unet_bilinear": (28_000_000, 32_000_000),
    "unet_resnet50_heavy": (147_808_641, 147_808_641),
    "unet_resnet50": (24_000_000, 33_000_000),
    "dispnet_vgg16": (19_850_000, 19_950_000),
    "unet_mobilenet_v3": (3_000_000, 5_000_000),
}
SLOW = {"unet_resnet50_heavy"}
LIGHT = ["unet_mobilenet_v3", "dispnet_vgg16"]
EVERY = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in depthzoo.list_models()]
every_model = pytest.mark.parametrize("name", EVERY)
HEADS = {"dispnet_vgg16": (1, 2, 4, 8)}


def build(name: str, **options: object) -> DepthModel:
    torch.manual_seed(0)
    return depthzoo.create_model(name, weights=None, **options)


def fresh(name: str) -> DepthModel:
    """A model for reading only, kept between tests of one name."""
    if fresh.kept[0] != name:  # type: ignore[attr-defined]
        fresh.kept = (name, build(name).eval())  # type: ignore[attr-defined]
    return fresh.kept[1]  # type: ignore[attr-defined,no-any-return]


fresh.kept = ("", None)  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    yield
    fresh.kept = ("", None)  # type: ignore[attr-defined]


def image(height: int = 32, width: int = 32, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def wild(model: DepthModel) -> DepthModel:
    """The same with weights that saturate every head."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, depthzoo.models.base.DepthHead):
                module.conv.weight.mul_(1e5)
    return model


# One by one.


@every_model
def test_parameters_name_and_arguments(name: str) -> None:
    model = fresh(name)
    least, most = PARAMETERS[name]
    assert least <= sum(p.numel() for p in model.parameters()) <= most
    assert (model.name, model.arguments, model.card) == (name, {}, None)
    assert (model.min_depth, model.max_depth) == (0.001, 10.0)


def test_there_is_a_count_for_each() -> None:
    assert sorted(PARAMETERS) == depthzoo.list_models()


@every_model
@torch.no_grad()
def test_any_size_from_32_up(name: str) -> None:
    model = fresh(name)
    for height, width, count in ((32, 32, 1), (33, 47, 2), (95, 64, 1), (64, 96, 1), (63, 65, 1)):
        depth = model(image(height, width, count))
        assert depth.shape == (count, 1, height, width)
        assert depth.dtype == torch.float32
        assert depth.min() >= 0.001
        assert depth.max() <= 10


@every_model
def test_smaller_is_refused_by_name(name: str) -> None:
    for height, width in ((31, 64), (64, 31), (1, 1)):
        with pytest.raises(ValueError, match=f"{name}: .* at least 32x32 pixels, got {height}x{width}"):
            fresh(name)(torch.rand(1, 3, height, width))


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 1, 32, 32), (1, 4, 32, 32), (1, 32, 32, 3), (1, 1, 3, 32, 32)]
)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"unet_mobilenet_v3: image must be \(N, 3, H, W\), got \("):
        fresh("unet_mobilenet_v3")(torch.rand(shape))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be float in \[0, 1\], got torch\.uint8; divide by 255"):
        fresh("unet_mobilenet_v3")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@every_model
@torch.no_grad()
def test_all_heads_finest_first(name: str) -> None:
    model = fresh(name)
    for height, width in ((64, 96), (33, 47)):
        heads = model(image(height, width), all_heads=True)
        assert isinstance(heads, list)
        assert torch.equal(heads[0], model(image(height, width)))
        sizes = [tuple(h.shape[-2:]) for h in heads]
        assert sizes == [(height // s, width // s) for s in HEADS.get(name, (1,))]
        assert all(h.shape[:2] == (1, 1) and h.dtype == torch.float32 for h in heads)


@every_model
@torch.no_grad()
def test_fresh_model_predicts_about_the_log_mean_depth(name: str) -> None:
    for depth in fresh(name)(image(64, 96), all_heads=True):
        assert depth.median().item() == pytest.approx(2.54, rel=0.15)
        assert depth.std() < 1


@every_model
@torch.no_grad()
def test_float32_within_the_range_under_autocast_and_in_half_precision(name: str) -> None:
    """Saturated heads, so that rounding in bfloat16 would leave the range (9.999 is 10 there, 0.001 is not)."""
    model, x = wild(build(name).eval()), image(33, 47)
    with torch.autocast("cpu", torch.bfloat16):
        depths = [model(x), model(x.bfloat16()), *model(x, all_heads=True)]
    model.bfloat16()
    depths += [model(x), model(x.bfloat16()), *model(x, all_heads=True)]
    for depth in depths:
        assert depth.dtype == torch.float32
        assert depth.isfinite().all()
        assert depth.min() >= 0.001
        assert depth.max() <= 10
    assert max(d.max() for d in depths) > 9.9 or min(d.min() for d in depths) < 0.1


@every_model
@torch.no_grad()
def test_half_precision_body_with_a_float32_head_stays_close(name: str) -> None:
    model, x = build(name).eval(), image(64, 64)
    expected = model(x)
    for child_name, child in model.named_children():
        if child_name not in ("head", "coarse_heads", "normalize"):
            child.bfloat16()
    depth = model(x)
    assert depth.dtype == torch.float32
    assert (depth - expected).abs().mean() < 0.05
    assert not torch.equal(depth, depth.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_image_of_any_float(dtype: torch.dtype) -> None:
    model, x = fresh("unet_mobilenet_v3"), image(33, 47)
    depth = model(x.to(dtype))
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, model(x), atol=0.05, rtol=0)


@every_model
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name).train()
    sum(depth.log().square().mean() for depth in model(image(64, 64, 2), all_heads=True)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before a BatchNorm in train mode has a gradient of exactly or nearly zero; it still has one.
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert [n for n in without if not n.endswith("bias")] == []


@every_model
def test_builders_are_keyword_only_and_documented(name: str) -> None:
    builder = getattr(depthzoo, name)
    parameters = inspect.signature(builder).parameters.values()
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)
    assert inspect.signature(builder).parameters["weights"].default == "DEFAULT"
    assert inspect.signature(builder).parameters["encoder_weights"].default is None
    for word in ("Args:", "Returns:", "Raises:", "metres", "[0, 1]"):
        assert word in builder.__doc__


@every_model
@torch.no_grad()
def test_encoder_contract(name: str) -> None:
    encoder = fresh(name).encoder
    features = encoder(image(64, 96))
    assert tuple(f.shape[1] for f in features) == encoder.out_channels
    assert [tuple(f.shape[-2:]) for f in features] == [(64 // s, 96 // s) for s in encoder.strides]
    assert list(encoder.strides) == sorted(encoder.strides)


@every_model
@torch.no_grad()
def test_encoder_receives_the_normalised_image(name: str) -> None:
    seen: list[Tensor] = []
    handle = fresh(name).encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.tensor([0.485, 0.456, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    fresh(name)(x)
    handle.remove()
    expected = torch.tensor([0.0, 0.0, (1 - 0.406) / 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(seen[0], expected)


@every_model
def test_state_has_parameters_and_statistics_only(name: str) -> None:
    model = fresh(name)
    own = {n for n, _ in model.named_parameters()}
    statistics = {
        f"{n}.{s}"
        for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for s in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert set(model.state_dict()) == own | statistics
    json.dumps(model.arguments)


# Heads.


@pytest.mark.parametrize("name", LIGHT)
@torch.no_grad()
def test_linear_head_may_leave_the_range(name: str) -> None:
    model = build(name, head="linear", mean_depth=3.0).eval()
    assert model.arguments == {"head": "linear", "mean_depth": 3.0}
    assert model(image(64, 64)).median().item() == pytest.approx(3, abs=0.3)
    depth = wild(model)(image(64, 64))
    assert depth.dtype == torch.float32
    assert depth.max() > 10 or depth.min() < 0


@torch.no_grad()
def test_range_and_mean_of_the_head() -> None:
    model = build("unet_mobilenet_v3", min_depth=1.0, max_depth=80.0, mean_depth=20.0).eval()
    assert (model.min_depth, model.max_depth) == (1, 80)
    assert model(image(64, 64)).median().item() == pytest.approx(20, rel=0.1)
    nn.init.zeros_(model.head.conv.weight)
    for bias, depth in ((0.0, 40.5), (-200.0, 1.0), (200.0, 80.0), (math.log(3), 1 + 79 * 0.75)):
        nn.init.constant_(model.head.conv.bias, bias)
        assert model(image())[0, 0, 5, 5].item() == pytest.approx(depth, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"head": "softmax"}, "head must be 'sigmoid' or 'linear', not 'softmax'"),
        ({"min_depth": 0.0}, "0 < min_depth < mean_depth < max_depth, not 0.0, 2.54, 10.0"),
        ({"min_depth": -1.0}, "0 < min_depth"),
        ({"max_depth": 2.0}, "not 0.001, 2.54, 2.0"),
        ({"mean_depth": 10.0}, "not 0.001, 10.0, 10.0"),
        ({"mean_depth": math.nan}, "nan"),
        ({"min_depth": 5.0, "max_depth": 1.0}, "not 5.0"),
    ],
)
def test_bad_head_options_are_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build("unet_mobilenet_v3", **options)


@pytest.mark.parametrize("name", ["unet", "unet_bilinear"])
def test_a_narrow_unet(name: str, tmp_path: Path) -> None:
    narrow = build(name, width=8)
    assert narrow.encoder.out_channels == (8, 16, 32, 64, 128) and narrow.arguments == {"width": 8}
    # All but the first layer and the last have an eighth of the channels on either side.
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in fresh(name).parameters()) / 55
    assert fresh(name).encoder.out_channels == (64, 128, 256, 512, 1024)
    path = tmp_path / "narrow.safetensors"
    depthzoo.write_weights(narrow, path, {"model": name, "arguments": narrow.arguments})
    again = depthzoo.create_model(name, weights=path)
    assert again.encoder.out_channels == narrow.encoder.out_channels
    with pytest.raises(ValueError, match="was trained with width=8, not 64"):
        depthzoo.create_model(name, weights=path, width=64)
    for width in (0, 7.5, "wide"):
        with pytest.raises(ValueError, match=f"width must be a whole number of 1 or more, not {width!r}"):
            build(name, width=width)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"heads": "linear"}, "unknown option 'heads': did you mean 'head'"),
        ({"max_dpeth": 80.0}, "unknown option 'max_dpeth': did you mean 'max_depth'"),
        ({"pretrained": True}, "unknown option 'pretrained': there are: encoder_weights, head, "),
        ({"num_classes": None}, "unknown option 'num_classes'"),
    ],
)
@pytest.mark.parametrize("weights", [None, "DEFAULT"])
def test_unknown_options_are_refused(option: dict, said: str, weights: str | None) -> None:
    with pytest.raises(TypeError, match=f"^unet_mobilenet_v3: {said}"):
        depthzoo.create_model("unet_mobilenet_v3", weights=weights, **option)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        depthzoo.unet_mobilenet_v3(weights=weights, **option)


# Sizes.


@pytest.fixture
def at_96x128() -> DepthModel:
    """A model whose card says that it works at 96x128."""
    model = build("unet_mobilenet_v3").eval()
    model.card = {"size": [96, 128]}
    return model


def warned(model: nn.Module, height: int, width: int) -> list[str]:
    with warnings.catch_warnings(record=True) as found, torch.no_grad():
        warnings.simplefilter("always")
        model(torch.zeros(1, 3, height, width))
    return [str(warning.message) for warning in found]


def test_trained_weights_warn_once_of_a_size_they_are_not_for(at_96x128: DepthModel) -> None:
    for size in ((96, 128), (128, 96), (120, 160), (80, 96)):  # 1, 1, 1.56 times the pixels, and 1 / 1.6
        assert warned(at_96x128, *size) == []
    twin = copy.deepcopy(at_96x128)
    message = (
        "unet_mobilenet_v3: these weights work at 96x128 and are much less accurate on an image of 128x160; "
        "depthzoo.Predictor(model) scales each picture to fit"
    )
    assert warned(at_96x128, 128, 160) == [message]
    assert warned(at_96x128, 128, 160) == warned(at_96x128, 32, 32) == []
    assert len(warned(twin, 64, 96)) == 1  # half the pixels


@pytest.mark.parametrize("form", [float, lambda figure: {"abs_rel": figure, "d1": 0.6}])
def test_sizes_that_the_card_has_good_figures_for_do_not_warn(at_96x128: DepthModel, form: Any) -> None:
    figures = {"64x96": 0.21, "96x128": 0.2, "128x160": 0.215, "160x160": 0.35}
    at_96x128.card = {"size": [96, 128], "sizes": {size: form(figure) for size, figure in figures.items()}}
    for size in ((64, 96), (128, 160), (96, 160)):
        assert warned(at_96x128, *size) == []
    assert len(warned(at_96x128, 160, 160)) == 1


def test_random_weights_and_training_do_not_warn(at_96x128: DepthModel) -> None:
    assert warned(at_96x128.train(), 160, 160) == []
    assert warned(build("unet_mobilenet_v3").eval(), 160, 160) == []


def test_the_warning_leaves_no_trace_in_graphs(at_96x128: DepthModel) -> None:
    x = torch.zeros(1, 3, 160, 160)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "unet_mobilenet_v3: these weights work at")
        graphs = [
            torch.compile(at_96x128, fullgraph=True, backend="eager"),
            torch.jit.trace(at_96x128, x, check_trace=False),
            torch.export.export(at_96x128, (x,)).module(),
            torch.export.export(at_96x128, (x,), strict=True).module(),
        ]
        for graph in graphs:
            assert graph(x).shape == (1, 1, 160, 160)


@every_model
def test_docstrings_name_the_tags_that_exist_and_their_sizes(name: str) -> None:
    tags = depthzoo.weights.tags(name)
    said = re.search(r"a tag \(([^)]*)\)", getattr(depthzoo, name).__doc__)
    sizes = {tag: "{}x{}".format(*depthzoo.weights.card(name, tag)["size"]) for tag in tags}
    expected = "; ".join(f'"{tag}", which works at {size}' for tag, size in sizes.items()) or "none yet"
    assert said and said[1] == expected


# Learning.


@pytest.mark.parametrize("name", LIGHT)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = build(name).train()
    x, target = image(64, 64, 2), torch.full((2, 1, 64, 64), 5.0)
    target[..., :32] = 1.5
    loss = depthzoo.create_loss("l1")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(7):
        optimiser.zero_grad()
        result = loss(model(x), target, torch.ones_like(target, dtype=torch.bool))
        result.backward()
        optimiser.step()
        values.append(result.item())
    assert values[-1] < 0.9 * values[0]
