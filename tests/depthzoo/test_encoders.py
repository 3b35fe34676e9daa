"""Where weights of an encoder or a whole model come from: torchvision, a file, or nowhere."""

import builtins
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torchvision.models._api import WeightsEnum

import depthzoo
from depthzoo.models import DepthModel
from depthzoo.weights import save_weights

# Model, torchvision's builder and weights, and the start of the keys that the zoo drops.
TORCHVISION = {
    "unet_resnet50": ("resnet50", "ResNet50_Weights.IMAGENET1K_V2", "fc."),
    "dispnet_vgg16": ("vgg16_bn", "VGG16_BN_Weights.IMAGENET1K_V1", "classifier."),
    "unet_mobilenet_v3": ("mobilenet_v3_large", "MobileNet_V3_Large_Weights.IMAGENET1K_V2", "classifier."),
}
torchvision_models = pytest.mark.parametrize("name", TORCHVISION)


def random_state(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torchvision's state dict for a model's encoder, and the part of it that the encoder has."""
    backbone, _, dropped = TORCHVISION[name]
    torch.manual_seed(7)
    state = torchvision.models.get_model(backbone, weights=None).state_dict()
    return state, {key: value for key, value in state.items() if not key.startswith(dropped)}


def assert_body(model: DepthModel, expected: dict[str, Tensor]) -> None:
    own = model.encoder.body.state_dict()
    assert set(own) == set(expected) and all(torch.equal(own[key], expected[key]) for key in own)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"network touched: {args}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", [n for n in depthzoo.list_models() if n != "unet_resnet50_heavy"])
def test_a_random_model_opens_no_socket_and_no_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"file touched: {args}")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(Path, "open", refuse)
        patch.setattr(safetensors, "safe_open", refuse)
        model = depthzoo.create_model(name, weights=None)
    assert model.card is None and model.training


@torchvision_models
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("age", ["new", "before num_batches_tracked"])
def test_imagenet_is_torchvisions_with_its_hash_checked(
    name: str, age: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG's file of 2017 is older than BatchNorm's counter; torchvision loads it, and so must the zoo."""
    state, body = random_state(name)
    served = {k: v for k, v in state.items() if age == "new" or not k.endswith("num_batches_tracked")}
    calls: list[tuple[str, Any]] = []

    def get_state_dict(self: WeightsEnum, *args: Any, **options: Any) -> dict[str, Tensor]:
        calls.append((f"{type(self).__name__}.{self.name}", options.get("check_hash")))
        return served

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    assert_body(depthzoo.create_model(name, weights=None, encoder_weights="imagenet"), body)
    assert calls == [(TORCHVISION[name][1], True)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (URLError(socket.gaierror(-2, "Name or service not known")), "Name or service not known"),
        (RuntimeError('invalid hash value (expected "1", got "2")'), "invalid hash value"),
    ],
)
def test_imagenet_that_cannot_be_downloaded(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, one_line: Any
) -> None:
    def get_state_dict(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(ValueError, match=rf"download https://.*{says}.* use None or a path$") as caught:
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights="imagenet")
    one_line(caught)


def test_imagenet_with_a_part_missing_or_for_a_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {k: v for k, v in random_state("unet_mobilenet_v3")[0].items() if "features.3.block.0.0" not in k}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    with pytest.raises(RuntimeError, match=r"features\.3\.block\.0\.0\.weight"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights="imagenet")
    for builder in (depthzoo.unet, depthzoo.unet_bilinear):
        with pytest.raises(ValueError, match="torchvision has none for this encoder; use None or a path"):
            builder(weights=None, encoder_weights="imagenet", width=2)


@torchvision_models
def test_encoder_from_a_file(name: str, tmp_path: Path) -> None:
    path, (_, body) = tmp_path / "encoder.safetensors", random_state(name)
    safetensors.torch.save_file(body, path)
    assert_body(depthzoo.create_model(name, weights=None, encoder_weights=path), body)


def test_the_two_unets_have_one_encoder(tmp_path: Path) -> None:
    body = depthzoo.unet(weights=None, width=4).encoder.body.state_dict()
    safetensors.torch.save_file(body, tmp_path / "e.safetensors")
    path = str(tmp_path / "e.safetensors")
    assert_body(depthzoo.unet_bilinear(weights=None, encoder_weights=path, width=4), body)


def test_other_encoder_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(depthzoo.unet(weights=None, width=4).encoder.body.state_dict(), path)
    with pytest.raises(ValueError, match=r"encoder\.safetensors.*missing.*features"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights=path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights=tmp_path / "nowhere.safetensors")
    for encoder in ("imagenet", path):
        with pytest.raises(ValueError, match=r"^unet_mobilenet_v3: encoder_weights .* add weights=None$"):
            depthzoo.create_model("unet_mobilenet_v3", encoder_weights=encoder)


@torchvision_models
@torch.no_grad()
def test_features_are_the_last_of_each_stride(name: str) -> None:
    """What torchvision's own network computes just before it halves its size; VGG's is the pooled one, after."""
    encoder = depthzoo.create_model(name, weights=None).encoder.eval()
    x = torch.rand(1, 3, 64, 64)
    if name == "unet_resnet50":  # the pooling between conv1 and layer1 is not a feature
        whole = torchvision.models.resnet50(weights=None).eval()
        whole.load_state_dict(encoder.body.state_dict(), strict=False)
        expected: list[Tensor] = []
        for layer in (whole.relu, whole.layer1, whole.layer2, whole.layer3, whole.layer4):
            layer.register_forward_hook(lambda _, __, output: expected.append(output.clone()))
        whole(x)
    else:
        steps = [x]
        for layer in encoder.body.features:
            steps.append(layer(steps[-1].clone()))
        sizes = [step.shape[-1] for step in steps]
        first = {size: sizes.index(size) for size in (32, 16, 8, 4, 2)}
        last = {size: len(sizes) - 1 - sizes[::-1].index(size) for size in first}
        expected = [steps[i] for i in (first if name == "dispnet_vgg16" else last).values()]
    for feature, step in zip(encoder(x), expected, strict=True):
        torch.testing.assert_close(feature, step)


OPTIONS = {"head": "linear", "max_depth": 20.0, "width": 4}


class TestTrainedWeights:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        torch.manual_seed(3)
        model = depthzoo.unet(weights=None, **OPTIONS)
        path = tmp_path / "unet.safetensors"
        save_weights(path, model.state_dict(), {"model": "unet", "tag": "mine", "arguments": model.arguments})
        return path

    @pytest.mark.usefixtures("offline")
    @torch.no_grad()
    def test_bring_their_options(self, saved: Path) -> None:
        model = depthzoo.unet(weights=saved)
        assert (model.arguments, model.head.activation, model.max_depth) == (OPTIONS, "linear", 20)
        assert model.card["tag"] == "mine" and not model.training
        torch.manual_seed(3)
        twin, x = depthzoo.unet(weights=None, **OPTIONS).eval(), torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(model(x), twin(x), rtol=0.01, atol=0.01)

    def test_must_not_be_contradicted(self, saved: Path) -> None:
        for options, trained in (
            ({"head": "sigmoid"}, "head='linear'"),
            ({"min_depth": 0.5}, "min_depth=0.001"),
            ({"mean_depth": 4.0}, "mean_depth=2.54"),
            ({"width": 64}, "width=4"),
        ):
            with pytest.raises(ValueError, match=f"was trained with {trained}, not"):
                depthzoo.unet(weights=saved, **options)
        assert depthzoo.unet(weights=saved, head="linear", max_depth=20).card is not None

    @pytest.mark.parametrize("name", ["unet_bilinear", "unet_mobilenet_v3"])
    def test_of_another_model(self, name: str, saved: Path) -> None:
        with pytest.raises(ValueError, match=rf"{saved.name}: holds weights of unet, not of {name}$"):
            depthzoo.create_model(name, weights=saved)

    def test_of_another_origin_are_built_with_the_given_options(self, tmp_path: Path) -> None:
        path = tmp_path / "plain.safetensors"
        safetensors.torch.save_file(depthzoo.unet(weights=None, width=4).state_dict(), path)
        model = depthzoo.unet(weights=path, width=4, max_depth=80.0)
        assert model.max_depth == 80 and model.arguments == {"width": 4, "max_depth": 80.0}
