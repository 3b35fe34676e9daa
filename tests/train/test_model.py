"""What training changes in a network: memory, stochastic depth, the head's range; never its state dict."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from depthzoo.models import create_model, list_models
from depthzoo.models.layers import Upsample2x
from train.cards import write_weights
from train.checkpoint import same
from train.config import TrainConfig
from train.model import add_stochastic_depth, build_model, checkpoint_activations, make_gradients_dense

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("unet_mobilenet_v3",)


def backward(name: str, checkpointed: bool) -> tuple[nn.Module, int]:
    """A model after one backward pass, and the bytes that the forward pass kept for it."""
    torch.manual_seed(0)
    model = create_model(name, weights=None).train()
    if checkpointed:
        assert checkpoint_activations(model) > 4
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        depth = model(image)
    depth.mean().backward()
    return model, sum(kept.values())


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in list_models()]
)
def test_checkpointed_activations_change_nothing_but_memory(name: str) -> None:
    (plain, much), (checkpointed, little) = backward(name, False), backward(name, True)
    for (key, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        if "num_batches" not in key:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=key)
    assert little < 0.7 * much


@pytest.mark.parametrize("name", ["unet_mobilenet_v3", "unet_bilinear"])
def test_upsampling_goes_backward_on_dense_gradients(name: str) -> None:
    """And the gradients of the weights are those of the plain network."""
    dense: list[bool] = []
    found = []
    for plain in (False, True):
        torch.manual_seed(0)
        network = create_model(name, weights=None).to(memory_format=torch.channels_last).train()
        if not plain:
            make_gradients_dense(network)
            for module in network.modules():
                if isinstance(module, Upsample2x):
                    module.register_full_backward_pre_hook(
                        lambda module, gradients: dense.append(
                            gradients[0].is_contiguous(memory_format=torch.channels_last)
                        )
                    )
        image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
        network(image.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        found.append({key: value.grad for key, value in network.named_parameters()})
    assert len(dense) >= 4 and all(dense)
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, rtol=1e-3, atol=1e-5)


def test_stochastic_depth_skips_blocks_in_training_only() -> None:
    """With a probability near 1 the last block passes its input on; evaluation and the state dict do not change."""
    torch.manual_seed(0)
    network = create_model("unet_resnet50", weights=None).eval()
    image, names = torch.rand(2, 3, 64, 64), list(network.state_dict())
    plain = network(image)
    assert add_stochastic_depth(network, 0.999) == 16
    assert torch.equal(network(image), plain) and list(network.state_dict()) == names
    block = network.encoder.body.layer4[-1].train()
    features = torch.rand(2, 2048, 2, 2)
    assert torch.equal(block(features), features)


def test_a_recipes_options_reach_the_model() -> None:
    model = build_model(TrainConfig(model="unet", head="linear", model_options={"width": 4}))
    assert model.arguments == {"head": "linear", "width": 4}
    with pytest.raises(ValueError, match=r"^model_options of unet: .*'widht'"):
        build_model(TrainConfig(model="unet", model_options={"widht": 4}))


def test_a_whole_model_to_start_from_needs_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises((OSError, ValueError), match="no network"):
        build_model(TrainConfig(encoder_weights="imagenet"))
    path = tmp_path / "model.safetensors"
    start = build_model(TrainConfig(seed=1))
    write_weights(start, path, {})
    for init in (str(path), str(tmp_path)):
        model = build_model(TrainConfig(encoder_weights="imagenet", init=init))
        torch.testing.assert_close(model.state_dict(), start.state_dict(), rtol=1e-3, atol=1e-3)
    of_zoo = create_model("unet_mobilenet_v3").state_dict()
    assert same(build_model(TrainConfig(init="unet_mobilenet_v3")).state_dict(), of_zoo)
    with pytest.raises(ValueError, match="did you mean 'unet_mobilenet_v3'"):
        build_model(TrainConfig(init="unet_mobilenet"))


def info(depth_range: list[float], focal_px: float, size: tuple[int, int]) -> dict:
    return {"depth_range": depth_range, "splits": {"train": {"focal_px": focal_px, "size": list(size)}}}


@pytest.mark.parametrize(
    ("known", "options", "far"),
    [
        (None, {}, 10.0),
        (info([0.001, 10.0], 322.0, (288, 384)), {}, 10.0),  # NYU Depth V2, cropped
        (
            info([0.001, 80.0], 180.0, (64, 310)),
            {},
            111.7,
        ),  # 80 m of a wide lens are farther in canonical metres
        (info([0.001, 80.0], 180.0, (310, 64)), {}, 111.7),  # turned for the portrait
        (info([0.05, 2.0], 518.86, (480, 640)), {}, 2.0),
        (info([0.001, 80.0], 180.0, (64, 310)), {"max_depth": 60.0}, 60.0),
    ],
)
def test_the_head_reaches_the_range_of_the_data_set(known: dict | None, options: dict, far: float) -> None:
    model = build_model(TrainConfig(model="unet", model_options={"width": 4, **options}), known)
    assert model.max_depth == pytest.approx(far, abs=0.02)
    assert ("mean_depth" in model.arguments) == (far != 10.0 and not options)


@pytest.mark.parametrize(("options", "kept"), [({}, True), ({"max_depth": 80.0, "mean_depth": 20.0}, False)])
def test_initial_weights_of_another_range_get_a_new_head(
    tmp_path: Path, options: dict[str, float], kept: bool
) -> None:
    """The weights of the old head would give depth in another scale."""
    origin = create_model("unet_mobilenet_v3", weights=None)
    nn.init.constant_(origin.head.conv.bias, 3.0)
    write_weights(origin, path := tmp_path / "origin.safetensors", {})
    model = build_model(TrainConfig(init=str(path), model_options=options))
    weights = [next(each.encoder.parameters()) for each in (model, origin)]
    torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-2)  # stored as float16
    assert bool(model.head.conv.bias == 3.0) is kept
    depth = model.eval()(torch.rand(1, 3, 64, 64))
    assert kept or float(depth.detach().mean()) == pytest.approx(20.0, rel=0.3)
