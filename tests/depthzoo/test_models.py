"""Every model against the contract of DepthModel; then options, sizes and the registry."""

import copy
import inspect
import json
import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depthzoo
from depthzoo import losses, weights
from depthzoo.models import _api, get_builder
from depthzoo.models.base import DepthModel
from depthzoo.models.layers import DepthHead

# Counted by hand or published; exact where a design is.
PARAMETERS = {
    "dispnet_vgg16": (19_850_000, 19_950_000),
    "unet": (31_030_000, 31_050_000),
    "unet_bilinear": (28_000_000, 32_000_000),
    "unet_mobilenet_v3": (3_000_000, 5_000_000),
    "unet_resnet50": (24_000_000, 33_000_000),
    "unet_resnet50_heavy": (147_808_641, 147_808_641),
}
HEADS = {"dispnet_vgg16": (1, 2, 4, 8)}
SLOW = ("unet_resnet50_heavy",)
LIGHT = "unet_mobilenet_v3"
MODELS = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in depthzoo.list_models()]


def build(name: str = LIGHT, **options: object) -> DepthModel:
    torch.manual_seed(0)
    return depthzoo.create_model(name, weights=None, **options).eval()


def image(height: int = 32, width: int = 32, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def saturate(model: DepthModel) -> DepthModel:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, DepthHead):
                module.conv.weight.mul_(1e5)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> DepthModel:
    """A fresh model in evaluation mode, which a test must not change."""
    return build(request.param)


class TestContract:
    def test_parameters_name_and_arguments(self, model: DepthModel) -> None:
        least, most = PARAMETERS[model.name]
        assert least <= sum(p.numel() for p in model.parameters()) <= most
        assert get_builder(model.name) is getattr(depthzoo, model.name)
        assert (model.arguments, model.card) == ({}, None)
        assert (model.min_depth, model.max_depth) == (0.001, 10.0)

    @torch.no_grad()
    def test_any_size_from_32_and_all_heads(self, model: DepthModel) -> None:
        for height, width, count in ((32, 32, 1), (33, 47, 2), (64, 96, 1)):
            heads = model(image(height, width, count), all_heads=True)
            strides = HEADS.get(model.name, (1,))
            assert [tuple(h.shape) for h in heads] == [(count, 1, height // s, width // s) for s in strides]
            for head in heads:
                assert head.dtype == torch.float32 and head.min() >= 0.001 and head.max() <= 10
                # A fresh model predicts about the log-mean depth.
                assert head.median().item() == pytest.approx(2.54, rel=0.2)
        assert torch.equal(heads[0], model(image(height, width, count)))

    def test_bad_images_are_refused_by_name(self, model: DepthModel) -> None:
        for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)):
            with pytest.raises(ValueError, match=rf"{model.name}: image must be \(N, 3, H, W\), got \("):
                model(torch.rand(shape))
            with pytest.raises(ValueError, match=rf"{model.name}: image must be \(N, 3, H, W\), got \("):
                model.features(torch.rand(shape))
        for height, width in ((31, 64), (64, 31)):
            with pytest.raises(ValueError, match=f"at least 32x32 pixels, got {height}x{width}"):
                model(torch.rand(1, 3, height, width))
        with pytest.raises(ValueError, match=r"float in \[0, 1\], got torch\.uint8; divide by 255"):
            model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))

    @torch.no_grad()
    def test_float32_within_the_range_under_autocast_and_in_half_precision(self, model: DepthModel) -> None:
        """Saturated heads: rounding in bfloat16 would leave the range (9.999 is 10 there, 0.001 is not)."""
        model, x = saturate(copy.deepcopy(model)), image(33, 47)
        with torch.autocast("cpu", torch.bfloat16):
            depths = [model(x.bfloat16()), *model(x, all_heads=True)]
        model.bfloat16()
        depths += [model(x.bfloat16()), *model(x, all_heads=True)]
        for depth in depths:
            assert depth.dtype == torch.float32 and depth.isfinite().all()
            assert depth.min() >= 0.001 and depth.max() <= 10
        assert max(d.max() for d in depths) > 9.9 or min(d.min() for d in depths) < 0.1

    def test_gradient_reaches_every_parameter(self, model: DepthModel) -> None:
        model = copy.deepcopy(model).train()
        sum(depth.log().square().mean() for depth in model(image(64, 64, 2), all_heads=True)).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        # A bias before a BatchNorm in train mode has a gradient of nearly zero.
        without = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]
        assert [n for n in without if not n.endswith("bias")] == []

    @torch.no_grad()
    def test_encoder_gets_the_normalized_image_and_states_its_features(self, model: DepthModel) -> None:
        seen: list[Tensor] = []
        handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        x = torch.tensor([0.485, 0.456, 1.0]).view(1, 3, 1, 1).expand(1, 3, 64, 96)
        model(x)
        handle.remove()
        expected = torch.tensor([0.0, 0.0, (1 - 0.406) / 0.225]).view(1, 3, 1, 1).expand(1, 3, 64, 96)
        torch.testing.assert_close(seen[0], expected)
        encoder = model.encoder
        shapes = [
            (1, c, 64 // s, 96 // s) for c, s in zip(encoder.out_channels, encoder.strides, strict=True)
        ]
        features = model.features(x)
        assert [tuple(f.shape) for f in features] == shapes
        assert all(torch.equal(a, b) for a, b in zip(features, encoder(seen[0]), strict=True))

    def test_state_is_parameters_and_batchnorm_statistics(self, model: DepthModel) -> None:
        statistics = {
            f"{name}.{buffer}"
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
            for buffer in ("running_mean", "running_var", "num_batches_tracked")
        }
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} | statistics

    def test_builder_is_keyword_only_and_documented(self, model: DepthModel) -> None:
        builder = get_builder(model.name)
        parameters = inspect.signature(builder).parameters
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
        assert (parameters["weights"].default, parameters["encoder_weights"].default) == ("DEFAULT", None)
        for word in ("Args:", "Returns:", "Raises:", "metres", "[0, 1]", *parameters):
            assert word in builder.__doc__
        # The tags that exist, and their sizes.
        said = re.search(r"a tag \(([^)]*)\)", builder.__doc__)
        sizes = {
            tag: "{}x{}".format(*weights.card(model.name, tag)["size"]) for tag in weights.tags(model.name)
        }
        works = "; ".join(f'"{tag}", which works at {size}' for tag, size in sizes.items())
        assert said and said[1] == (works or "none yet")

    def test_a_new_head_on_the_same_features(self, model: DepthModel) -> None:
        other = copy.deepcopy(model).bfloat16()
        before = {name: tensor for name, tensor in other.state_dict().items() if "head" not in name}
        assert other.reset_head(3, max_depth=80.0, mean_depth=20.0) is other
        after = {name: tensor for name, tensor in other.state_dict().items() if "head" not in name}
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        with torch.no_grad():
            heads = other(image(64, 64), all_heads=True)
        assert [h.shape[1] for h in heads] == [3] * len(HEADS.get(model.name, (1,)))
        assert all(h.median().item() == pytest.approx(20, rel=0.2) for h in heads)
        assert {p.dtype for p in other.parameters()} == {torch.bfloat16} and not other.head.training
        # What is not given stays, and the arguments build the same network.
        other.reset_head(min_depth=1.0)
        assert (other.min_depth, other.max_depth, other.head.conv.out_channels) == (1, 80, 3)
        twin = build(model.name, **other.arguments)
        assert {k: v.shape for k, v in twin.state_dict().items()} == {
            k: v.shape for k, v in other.state_dict().items()
        }
        assert (twin.head.activation, twin.min_depth, twin.max_depth) == ("sigmoid", 1, 80)
        with pytest.raises(ValueError, match="0 < min_depth < mean_depth < max_depth"):
            other.reset_head(max_depth=10.0)
        assert other.max_depth == 80  # an error changes nothing

    def test_shapes_without_memory(self, model: DepthModel) -> None:
        with torch.device("meta"):
            other = depthzoo.create_model(model.name, weights=None)
            x = torch.empty(2, 3, 64, 96)
            depth = other(x)
            features = other.features(x)
        assert depth.is_meta and depth.shape == (2, 1, 64, 96) and depth.dtype == torch.float32
        assert [f.shape[1] for f in features] == list(model.encoder.out_channels)

    def test_head_options_reach_the_head(self, model: DepthModel) -> None:
        options = {
            "head": "linear",
            "min_depth": 1.0,
            "max_depth": 80.0,
            "mean_depth": 20.0,
            "out_channels": 2,
        }
        other = build(model.name, **options)
        assert (other.head.activation, other.min_depth, other.max_depth) == ("linear", 1, 80)
        assert other.arguments == options
        json.dumps(other.arguments)
        with torch.no_grad():
            assert other(image(64, 64)).median().item() == pytest.approx(20, rel=0.2)
            depth = saturate(other)(image(64, 64))
        assert depth.shape == (1, 2, 64, 64)
        assert depth.max() > 80 or depth.min() < 0


@torch.no_grad()
def test_the_sigmoid_spans_the_range() -> None:
    head = DepthHead(4, min_depth=1.0, max_depth=80.0, mean_depth=20.0)
    torch.testing.assert_close(
        head.depth(head.logits(torch.zeros(1, 4, 2, 2))), torch.full((1, 1, 2, 2), 20.0)
    )
    for logit, depth in ((0.0, 40.5), (-200.0, 1.0), (200.0, 80.0), (math.log(3), 1 + 79 * 0.75)):
        assert head.depth(torch.tensor(logit)).item() == pytest.approx(depth, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"head": "softmax"}, "head must be 'sigmoid' or 'linear', not 'softmax'"),
        ({"min_depth": 0.0}, "0 < min_depth < mean_depth < max_depth, not 0.0, 2.54, 10.0"),
        ({"max_depth": 2.0}, "not 0.001, 2.54, 2.0"),
        ({"mean_depth": 10.0}, "not 0.001, 10.0, 10.0"),
        ({"mean_depth": math.nan}, "nan"),
        ({"out_channels": 0}, "out_channels must be a whole number of 1 or more, not 0"),
        ({"out_channels": 1.0}, "not 1.0"),
    ],
)
def test_bad_head_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(**options)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"heads": "linear"}, "unknown option 'heads': did you mean 'head'"),
        ({"max_dpeth": 80.0}, "unknown option 'max_dpeth': did you mean 'max_depth'"),
        ({"num_classes": None}, "unknown option 'num_classes'"),
    ],
)
def test_unknown_options_are_refused(option: dict[str, Any], said: str) -> None:
    for trained in (None, "DEFAULT"):
        with pytest.raises(TypeError, match=f"^unet_mobilenet_v3: {said}"):
            depthzoo.create_model(LIGHT, weights=trained, **option)
    with pytest.raises(TypeError, match=f"^unet_mobilenet_v3: {said}"):
        depthzoo.load(LIGHT, **option)


@pytest.mark.parametrize("name", ["unet", "unet_bilinear"])
def test_width_of_the_unets(name: str) -> None:
    model = build(name, width=8)
    assert model.encoder.out_channels == (8, 16, 32, 64, 128) and model.arguments == {"width": 8}
    for width in (0, 7.5, "wide"):
        with pytest.raises(ValueError, match=f"width must be a whole number of 1 or more, not {width!r}"):
            build(name, width=width)


def test_upsampling_of_the_two_unets() -> None:
    kinds = {n: {type(m) for m in build(n, width=2).modules()} for n in ("unet", "unet_bilinear")}
    assert nn.ConvTranspose2d in kinds["unet"] and nn.ConvTranspose2d not in kinds["unet_bilinear"]


def test_a_few_steps_lower_the_loss() -> None:
    model = build().train()
    x, target = image(64, 64, 2), torch.full((2, 1, 64, 64), 5.0)
    target[..., :32] = 1.5
    loss = depthzoo.create_loss("l1")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(7):
        optimizer.zero_grad()
        result = loss(model(x), target, torch.ones_like(target, dtype=torch.bool))
        result.backward()
        optimizer.step()
        values.append(result.item())
    assert values[-1] < 0.9 * values[0]


class Pixelwise(DepthModel):
    """The smallest network with a head."""

    name = "pixelwise"

    def __init__(self) -> None:
        super().__init__()
        self.head = DepthHead(3)

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.head.logits(image)]


class TestSizeWarning:
    @pytest.fixture
    def trained(self) -> DepthModel:
        """A model whose card says that it works at 96x128."""
        model = Pixelwise().eval()
        model.card = {"size": [96, 128]}
        return model

    def warned(self, model: nn.Module, height: int, width: int) -> list[str]:
        with warnings.catch_warnings(record=True) as found, torch.no_grad():
            warnings.simplefilter("always")
            model(image(height, width))
        return [str(warning.message) for warning in found]

    def test_once_far_from_the_working_size(self, trained: DepthModel) -> None:
        for size in ((96, 128), (128, 96), (120, 160), (80, 96)):  # 1, 1, 1.56 and 1 / 1.6 times the pixels
            assert self.warned(trained, *size) == []
        (message,) = self.warned(trained, 128, 160)
        assert "pixelwise: these weights work at 96x128" in message and "128x160" in message
        assert self.warned(trained, 128, 160) == self.warned(trained, 32, 32) == []

    @pytest.mark.parametrize("row", [float, lambda error: {"abs_rel": error, "d1": 0.6}])
    def test_not_at_sizes_with_good_figures(self, trained: DepthModel, row: Any) -> None:
        figures = {"64x96": 0.21, "96x128": 0.2, "128x160": 0.215, "160x160": 0.35}
        trained.card = {"size": [96, 128], "sizes": {size: row(error) for size, error in figures.items()}}
        for size in ((64, 96), (128, 160), (96, 160)):
            assert self.warned(trained, *size) == []
        assert len(self.warned(trained, 160, 160)) == 1

    def test_not_in_training_nor_with_random_weights_nor_in_graphs(self, trained: DepthModel) -> None:
        assert self.warned(copy.deepcopy(trained).train(), 160, 160) == []
        assert self.warned(Pixelwise().eval(), 160, 160) == []
        x = torch.zeros(1, 3, 160, 160)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "pixelwise: these weights work at")
            assert torch.jit.trace(trained, x, check_trace=False)(x).shape == (1, 1, 160, 160)
            assert torch.export.export(trained, (x,)).module()(x).shape == (1, 1, 160, 160)


class TestRegistry:
    def test_names_and_patterns(self) -> None:
        names = sorted(PARAMETERS)
        assert depthzoo.list_models() == names
        for pattern, found in (
            ("*resnet*", names[4:]),
            ("unet", ["unet"]),
            ("UNET*", []),
            ("*_v[13]*", [LIGHT]),
        ):
            assert depthzoo.list_models(pattern) == found
        pretrained = depthzoo.list_models(pretrained=True)
        assert pretrained == [name for name in names if weights.tags(name)]
        assert LIGHT in pretrained and depthzoo.list_models("dispnet*", pretrained=True) == []

    def test_weights_are_default_unless_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_api, "BUILDERS", {})

        @depthzoo.register_model
        def mine(*, weights: object, size: int = 0) -> Any:
            return weights, size

        assert depthzoo.list_models() == ["mine"]
        assert depthzoo.create_model("mine") == ("DEFAULT", 0)
        assert depthzoo.create_model("mine", weights=None, size=1) == (None, 1)
        for pretrained, expected in ((True, "DEFAULT"), (False, None), ("nyu", "nyu"), (None, "DEFAULT")):
            assert depthzoo.create_model("mine", pretrained=pretrained) == (expected, 0)
        with pytest.raises(ValueError, match="^mine: give weights or pretrained, not both"):
            depthzoo.create_model("mine", weights="nyu", pretrained=True)
        with pytest.raises(ValueError, match=r"model 'mine' is already registered, by "):
            depthzoo.register_model(mine)

    def test_a_loss_of_ones_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
        depthzoo.register_loss("mine")(losses.L1Loss)
        assert isinstance(depthzoo.create_loss("mine"), losses.L1Loss)
        with pytest.raises(ValueError, match=r"loss 'mine' is already registered, by depthzoo\.losses"):
            depthzoo.register_loss("mine")(losses.L1Loss)

    def test_unknown_names_suggest_the_closest(self, one_line: Any) -> None:
        for name, said in (
            ("unet_resnet5", "did you mean 'unet_resnet50', "),
            ("xyzzy", "there are: dispnet"),
        ):
            with pytest.raises(ValueError, match=f"^unknown model '{name}': {said}") as error:
                depthzoo.create_model(name)
            one_line(error)
        with pytest.raises(ValueError, match=r"unknown loss 'berhoo': did you mean 'berhu'\?"):
            depthzoo.create_loss("berhoo")
