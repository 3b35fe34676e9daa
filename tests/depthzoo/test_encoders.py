"""Where an encoder's weights come from: torchvision, a file, or nowhere."""

import builtins
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torchvision.models._api import WeightsEnum

import depthzoo

# Model, torchvision's builder, weights as in DESIGN, what is cut off.
TORCHVISION = [
    ("unet_resnet50", "resnet50", "ResNet50_Weights.IMAGENET1K_V2", ("fc.",)),
    ("dispnet_vgg16", "vgg16_bn", "VGG16_BN_Weights.IMAGENET1K_V1", ("classifier.",)),
    ("unet_mobilenet_v3", "mobilenet_v3_large", "MobileNet_V3_Large_Weights.IMAGENET1K_V2", ("classifier.",)),
]
pairs = pytest.mark.parametrize(
    ("name", "backbone", "enum", "cut"), TORCHVISION, ids=[t[0] for t in TORCHVISION]
)


def random_state(backbone: str) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return torchvision.models.get_model(backbone, weights=None).state_dict()


def body_of(state: dict[str, Tensor], cut: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(cut)}


def same(model: Any, expected: dict[str, Tensor]) -> bool:
    own = model.encoder.body.state_dict()
    return set(own) == set(expected) and all(torch.equal(own[k], expected[k]) for k in own)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"network or file touched: {args}")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize("name", [n for n in depthzoo.list_models() if n != "unet_resnet50_heavy"])
def test_random_model_opens_no_socket_and_no_file(
    name: str, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"file touched: {args}")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(Path, "open", refuse)
        patch.setattr(safetensors, "safe_open", refuse)
        model = depthzoo.create_model(name, weights=None)
    assert model.card is None
    assert model.training


@pairs
def test_body_has_torchvisions_names(name: str, backbone: str, enum: str, cut: tuple[str, ...]) -> None:
    own = depthzoo.create_model(name, weights=None).encoder.body.state_dict()
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in body_of(random_state(backbone), cut).items()
    }


@pairs
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("age", ["new", "before num_batches_tracked"])
def test_imagenet_is_torchvisions_with_its_hash_checked(
    name: str, backbone: str, enum: str, cut: tuple[str, ...], age: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG's file of 2017 is older than BatchNorm's counter; torchvision loads it, and so must the zoo."""
    state = random_state(backbone)
    served = {k: v for k, v in state.items() if age == "new" or not k.endswith("num_batches_tracked")}
    calls: list[tuple[str, Any]] = []

    def get_state_dict(self: WeightsEnum, *args: Any, **options: Any) -> dict[str, Tensor]:
        calls.append((f"{type(self).__name__}.{self.name}", options.get("check_hash")))
        return served

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    model = depthzoo.create_model(name, weights=None, encoder_weights="imagenet")
    assert calls == [(enum, True)]
    assert same(model, body_of(state, cut))


@pytest.mark.usefixtures("offline")
def test_imagenet_with_a_part_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = body_of(random_state("mobilenet_v3_large"), ("features.3.block.0.0.",))
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    with pytest.raises(RuntimeError, match=r"features\.3\.block\.0\.0\.weight"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights="imagenet")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (URLError(socket.gaierror(-2, "Name or service not known")), "Name or service not known"),
        (RuntimeError('invalid hash value (expected "1", got "2")'), "invalid hash value"),
    ],
)
def test_imagenet_that_cannot_be_had_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_state_dict(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(
        ValueError, match=rf"download https://.*mobilenet_v3_large.*{says}.* use None or a path$"
    ) as caught:
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights="imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["unet", "unet_bilinear"])
def test_unet_has_no_imagenet(name: str) -> None:
    with pytest.raises(ValueError, match="no ImageNet network; use None or a path"):
        depthzoo.create_model(name, weights=None, encoder_weights="imagenet")


@pairs
@pytest.mark.usefixtures("offline")
def test_encoder_from_a_file(
    name: str, backbone: str, enum: str, cut: tuple[str, ...], tmp_path: Path
) -> None:
    path, state = tmp_path / "encoder.safetensors", random_state(backbone)
    safetensors.torch.save_file(body_of(state, cut), path)
    for given in (path, str(path)):
        assert same(depthzoo.create_model(name, weights=None, encoder_weights=given), body_of(state, cut))


@pytest.mark.usefixtures("offline")
def test_unet_encoder_from_a_file(tmp_path: Path) -> None:
    """The two U-Nets have one encoder."""
    donor = depthzoo.unet(weights=None)
    safetensors.torch.save_file(donor.encoder.body.state_dict(), tmp_path / "e.safetensors")
    model = depthzoo.unet_bilinear(weights=None, encoder_weights=tmp_path / "e.safetensors")
    assert same(model, donor.encoder.body.state_dict())


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(body_of(random_state("resnet18"), ("fc.",)), path)
    with pytest.raises(ValueError, match=r"encoder\.safetensors.*missing.*features"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights=path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights=tmp_path / "nowhere.safetensors")
    path.write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        depthzoo.unet_mobilenet_v3(weights=None, encoder_weights=path)


# Trained weights in whole.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model with a linear head, whose numbers are those of a seed."""
    torch.manual_seed(3)
    model = depthzoo.unet_mobilenet_v3(weights=None, head="linear", max_depth=20.0)
    card = {"model": model.name, "tag": "test", "arguments": model.arguments}
    return depthzoo.save(model, tmp_path_factory.mktemp("weights"), "test", card)


@pytest.mark.usefixtures("offline")
def test_trained_weights_bring_their_head_and_no_encoder_is_loaded_first(saved: Path) -> None:
    model = depthzoo.unet_mobilenet_v3(weights=saved)
    assert model.arguments == {"head": "linear", "max_depth": 20.0}
    assert model.head.kind == "linear"
    assert model.max_depth == 20
    assert model.card["tag"] == "test"
    assert not model.training
    torch.manual_seed(3)
    twin = depthzoo.unet_mobilenet_v3(weights=None, head="linear", max_depth=20.0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-3, atol=1e-6)


def test_options_that_trained_weights_contradict_are_refused(saved: Path) -> None:
    for options, trained in (
        ({"head": "sigmoid"}, "head='linear'"),
        ({"min_depth": 0.5}, "min_depth=0.001"),
        ({"mean_depth": 4.0}, "mean_depth=2.54"),
    ):
        with pytest.raises(ValueError, match=f"was trained with {trained}, not"):
            depthzoo.unet_mobilenet_v3(weights=saved, **options)
    assert depthzoo.unet_mobilenet_v3(weights=saved, head="linear", max_depth=20).card is not None


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"{saved.name}: holds weights of unet_mobilenet_v3, not of unet_resnet50$"
    ):
        depthzoo.unet_resnet50(weights=saved)
    # Its options are none of the other's.
    path = depthzoo.save(depthzoo.unet(weights=None, width=4), tmp_path, "test", {})
    with pytest.raises(ValueError, match=r"holds weights of unet, not of unet_mobilenet_v3$"):
        depthzoo.unet_mobilenet_v3(weights=path)


@torch.no_grad()
def test_saved_weights_keep_their_range_of_depth(tmp_path: Path) -> None:
    model = depthzoo.unet_mobilenet_v3(weights=None, max_depth=80.0, mean_depth=20.0).eval()
    again = depthzoo.unet_mobilenet_v3(weights=depthzoo.save(model, tmp_path, "test", {}))
    assert again.arguments == {"max_depth": 80.0, "mean_depth": 20.0} and again.max_depth == 80
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0.02, atol=0.1)


def test_a_file_of_another_origin_is_built_with_the_options_that_are_given(tmp_path: Path) -> None:
    donor = depthzoo.unet_mobilenet_v3(weights=None, max_depth=80.0)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "plain.safetensors")
    model = depthzoo.unet_mobilenet_v3(weights=tmp_path / "plain.safetensors", max_depth=80.0)
    assert model.max_depth == 80 and model.arguments == {"max_depth": 80.0}
    assert depthzoo.unet_mobilenet_v3(weights=tmp_path / "plain.safetensors").max_depth == 10


@pairs
@torch.no_grad()
def test_features_are_the_last_of_each_stride(
    name: str, backbone: str, enum: str, cut: tuple[str, ...]
) -> None:
    """What torchvision's own network computes just before it halves its size; VGG's is the pooled one, after."""
    encoder = depthzoo.create_model(name, weights=None).encoder.eval()
    x = torch.rand(1, 3, 64, 64)
    if backbone == "resnet50":  # the pooling between conv1 and layer1 is no feature
        whole = torchvision.models.resnet50(weights=None).eval()
        whole.load_state_dict(encoder.body.state_dict(), strict=False)
        seen: list[Tensor] = []
        for layer in (whole.relu, whole.layer1, whole.layer2, whole.layer3, whole.layer4):
            layer.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        whole(x)
        expected = seen
    else:
        steps = [x]
        for layer in encoder.body.features:
            steps.append(layer(steps[-1].clone()))
        sizes = [step.shape[-1] for step in steps]
        first = {size: sizes.index(size) for size in (32, 16, 8, 4, 2)}
        last = {size: len(sizes) - 1 - sizes[::-1].index(size) for size in first}
        expected = [steps[i] for i in (first if backbone == "vgg16_bn" else last).values()]
    for feature, step in zip(encoder(x), expected, strict=True):
        torch.testing.assert_close(feature, step)


@pytest.mark.parametrize("encoder", ["imagenet", "encoder.safetensors"])
def test_encoder_weights_are_refused_where_they_would_be_overwritten(encoder: str) -> None:
    with pytest.raises(ValueError, match=r"^unet_mobilenet_v3: encoder_weights .* add weights=None$"):
        depthzoo.create_model("unet_mobilenet_v3", encoder_weights=encoder)
