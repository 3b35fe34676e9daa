"""Pre-training of encoders: what comes out, exact resume, and what is refused."""

import io
import json
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from depthzoo.errors import DatasetError
from depthzoo.models import create_model
from depthzoo.weights import read_metadata
from train.arguments import command
from train.checkpoint import load_checkpoint, same
from train.pictures import find_pictures
from train.pretrain import Batches, Classifier, parser, run
from train.rooms import render

SIZE = 48
WriteTar = Callable[..., Path]


@pytest.fixture(autouse=True)
def deterministic():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def encoded() -> list[bytes]:
    """Eight rooms as WebP; the second four are blue, so that there are two kinds to tell apart."""
    pictures = []
    for seed in range(8):
        image = render(seed, (SIZE, 64)).image.copy()
        if seed >= 4:
            image[..., :2] //= 3
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True)
        pictures.append(buffer.getvalue())
    return pictures


@pytest.fixture(scope="session")
def write_tar(encoded: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> WriteTar:
    """Writes ``count`` pictures, and bytes of one's own in place of some."""

    def write(count: int = 24, kinds: tuple[str, str] = ("attic", "cellar"), **instead: bytes) -> Path:
        path = tmp_path_factory.mktemp("tars") / "rooms-00.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(count):
                name = f"{number:05d}"
                content = instead.get("n" + name, encoded[number % 8])
                member = tarfile.TarInfo(f"{kinds[number % 8 // 4]}/{name}.webp")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.fixture(scope="session")
def tar(write_tar: WriteTar) -> Path:
    return write_tar()


def pretrain(*arguments: object) -> int:
    fixed = ["--size", "32", "--batch-size", "8", "--workers", "0", "--precision", "fp32", "--device", "cpu"]
    return command(parser(), run, [*fixed, *map(str, arguments)])


@pytest.fixture(scope="session")
def finished(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of six."""
    out = tmp_path_factory.mktemp("run") / "run"
    arguments = ["--model", "unet_mobilenet_v3", "--data", tar, "--out", out, "--epochs", 2, "--max-steps", 5]
    assert pretrain(*arguments, "--terms", "made up") == 0
    return out


def test_the_encoder_file_is_what_was_trained(finished: Path) -> None:
    path = finished / "encoder.safetensors"
    model = create_model("unet_mobilenet_v3", weights=None, encoder_weights=path)
    trained = load_checkpoint(finished / "checkpoint.safetensors").model
    prefix = "encoder.body."
    body = {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
    assert "features.0.0.weight" in body  # torchvision's own name
    assert same(model.encoder.body.state_dict(), body)
    torch.manual_seed(0)
    fresh = create_model("unet_mobilenet_v3", weights=None).encoder.body.state_dict()
    assert not torch.equal(fresh["features.0.0.weight"], body["features.0.0.weight"])
    card = read_metadata(path)
    assert card["model"] == "unet_mobilenet_v3" and card["part"] == "encoder" and card["terms"] == "made up"
    assert card["kinds"] == ["attic", "cellar"]
    assert (card["trained_on"]["steps"], card["trained_on"]["precision"]) == (5, "fp32")


def test_the_run_says_what_it_did(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["step"] == 5 and metrics["steps"] == 6  # ceil(23 / 8) twice
    assert metrics["pictures"] == 23 and metrics["held_out"] == 1 and metrics["resumed_from"] == []
    assert [row["step"] for row in metrics["history"]] == [3, 5]
    assert metrics["history"][-1]["held_out_accuracy"] in (0, 1)
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config["lr"] == 1e-3 and config["size"] == 32


def test_resuming_is_bit_identical(tar: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    base = ["--model", "unet_mobilenet_v3", "--data", tar, "--epochs", 1]
    assert pretrain(*base, "--out", straight) == 0
    assert pretrain(*base, "--out", broken, "--max-steps", 1) == 0
    assert pretrain(*base, "--out", broken, "--resume", "--workers", 1) == 0
    a, b = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (straight, broken))
    assert a.state["step"] == b.state["step"] == 3 and b.state["resumed_from"] == [1]
    assert same(a.model, b.model)
    assert same(*(load_file(folder / "encoder.safetensors") for folder in (straight, broken)))


def test_the_loss_falls_on_a_few_pictures(write_tar: WriteTar, tmp_path: Path) -> None:
    """Blue rooms against others: eight pictures are learnt in a few steps."""
    tar = write_tar(9)
    arguments = ["--model", "unet_mobilenet_v3", "--data", tar, "--out", tmp_path / "run", "--epochs", 24]
    assert pretrain(*arguments, "--lr", "3e-3") == 0
    losses = [row["loss"] for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]]
    # A guess costs ln 2. One epoch's loss jumps as the processor rounds; that of the last eight does not.
    assert losses[0] > 0.6 and np.median(losses[-8:]) < 0.6 / 2


@pytest.mark.parametrize("name", ["dispnet_vgg16", "unet_resnet50", "unet"])
def test_every_encoder_can_be_trained(name: str) -> None:
    """Each parameter of the backbone gets a gradient."""
    torch.manual_seed(0)
    classifier = Classifier(create_model(name, weights=None), 3)
    logits = classifier(torch.rand(4, 3, 32, 32))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())


def test_batches_depend_on_seed_epoch_and_picture_alone(tar: Path) -> None:
    pictures, crop = find_pictures([tar]), v2.RandomResizedCrop(32, antialias=True)

    def batches(seed: int) -> Batches:
        return Batches(pictures, ["attic", "cellar"], crop, 5, seed)

    first, again = batches(1), batches(1)
    state = torch.get_rng_state()
    one = again[6].image  # another order of access
    assert torch.equal(torch.get_rng_state(), state)
    first[0]
    assert torch.equal(first[6].image, one) and one.shape == (5, 3, 32, 32)
    assert not torch.equal(batches(2)[6].image, one)
    # An epoch is every picture once.
    whole = Batches(pictures, ["attic", "cellar"], v2.Resize((32, 32)), 24, 1)
    assert sorted(whole[0].label.tolist()) == sorted(whole[1].label.tolist()) == [0] * 12 + [1] * 12
    assert whole[0].label.tolist() != whole[1].label.tolist()


def test_a_tar_a_folder_of_tars_and_a_folder_of_pictures_are_the_same(tar: Path, tmp_path: Path) -> None:
    with tarfile.open(tar) as file:
        file.extractall(tmp_path, filter="data")
    by_name = [{p.name: p.read() for p in find_pictures([s])} for s in (tar, tar.parent, tmp_path)]
    assert len(by_name[0]) == 24
    for other in by_name[1:]:
        assert other.keys() == by_name[0].keys()
        assert all(np.array_equal(other[name], by_name[0][name]) for name in other)
    assert {p.kind for p in find_pictures([tmp_path])} == {"attic", "cellar"}


def test_an_unreadable_picture_is_named_and_skipped(
    write_tar: WriteTar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "unet_mobilenet_v3", "--epochs", 1]
    # Of 106 pictures 100 or 101 are trained on; one of 106 may be bad, two may not.
    one = write_tar(106, n00005=b"no picture")
    assert pretrain(*arguments, "--data", one, "--out", tmp_path / "one", "--batch-size", 53) == 0
    assert capsys.readouterr().err.count("cellar/00005.webp: cannot be read: not a picture") == 1
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert [name.split("/")[-1] for name in metrics["skipped"]] == ["00005.webp"]
    two = write_tar(106, n00005=b"no picture", n00006=b"")
    assert pretrain(*arguments, "--data", two, "--out", tmp_path / "two", "--batch-size", 53) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 106 pictures are unreadable, more than 1%" in last and "cellar/0000" in last


def test_a_truncated_tar_is_refused(tar: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.tar"
    content = tar.read_bytes()
    last = find_pictures([tar])[-1]
    short.write_bytes(content[: last.offset + 100])
    with pytest.raises(DatasetError, match="truncated"):
        find_pictures([short])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--data", "nowhere.tar"], "nowhere.tar: no such tar or folder"),
        (["--data", __file__], "not an uncompressed tar"),
        (["--data", "EMPTY"], "has no pictures"),
        (["--data", "ONE"], "in one folder, 'attic'"),
        (["--model", "unet_resnet"], "did you mean 'unet_resnet50'"),
        (["--resume"], "no checkpoint to resume from"),
        (["--size", "16"], "--size 16: expected at least 32"),
        (["--lr", "nan"], "--lr nan"),
        (["--device", "cuda:99"], "cuda"),
    ],
)
def test_bad_arguments_are_one_line(
    tar: Path,
    write_tar: WriteTar,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": lambda: str(tmp_path / "empty"), "ONE": lambda: str(write_tar(8, ("attic", "attic")))}
    change = [places[word]() if word in places else word for word in change]
    base = ["--model", "unet_mobilenet_v3", "--data", tar, "--out", tmp_path / "run", "--max-steps", 1]
    assert pretrain(*base, *change) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_mixed_up(
    tar: Path, write_tar: WriteTar, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "unet_mobilenet_v3", "--out", finished, "--epochs", 2]
    before = (finished / "encoder.safetensors").read_bytes()
    for change, says in (
        (["--data", tar], "holds a run already"),
        (["--data", tar, "--resume", "--lr", "0.5"], "other values"),
        (["--data", write_tar(23), "--resume"], "other pictures"),
    ):
        assert pretrain(*arguments, *change) == 2
        assert says in capsys.readouterr().err
    assert (finished / "encoder.safetensors").read_bytes() == before


def test_an_encoder_of_another_network_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is for 'unet_mobilenet_v3'"):
        create_model("unet_resnet50", weights=None, encoder_weights=finished / "encoder.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="missing"):
        create_model("unet_resnet50", weights=None, encoder_weights=tmp_path / "none.safetensors")
