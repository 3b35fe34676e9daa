"""Pre-training of encoders: what comes out, resume, and what is refused."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from depthzoo.errors import DatasetError
from depthzoo.models import create_model
from depthzoo.weights import read_metadata
from train.arguments import command
from train.checkpoint import load_checkpoint, same
from train.pictures import find_pictures
from train.pretrain import Classifier, parser, run
from train.rooms import render

WriteTar = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> Iterator[None]:
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
        image = render(seed, (48, 64)).image.copy()
        if seed >= 4:
            image[..., :2] //= 3
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True)
        pictures.append(buffer.getvalue())
    return pictures


@pytest.fixture(scope="session")
def write_tar(encoded: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> WriteTar:
    """Writes ``count`` pictures of two kinds, and bytes of one's own in place of some."""

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
    fixed = ["--size", "32", "--batch-size", "8", "--precision", "fp32", "--device", "cpu"]
    return command(parser(), run, [*fixed, "--model", "unet_mobilenet_v3", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert pretrain("--data", tar, "--out", out, "--epochs", 2, "--terms", "made up") == 0
    return out


def test_the_encoder_file_is_what_was_trained(finished: Path) -> None:
    path = finished / "encoder.safetensors"
    model = create_model("unet_mobilenet_v3", weights=None, encoder_weights=path)
    trained = load_checkpoint(finished / "checkpoint.safetensors").model
    prefix = "encoder.body."
    body = {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
    assert same(model.encoder.body.state_dict(), body)
    torch.manual_seed(0)
    fresh = create_model("unet_mobilenet_v3", weights=None).encoder.body.state_dict()
    first = "features.0.0.weight"  # torchvision's own name
    assert not torch.equal(fresh[first], body[first])
    card = read_metadata(path)
    assert card["model"] == "unet_mobilenet_v3" and card["part"] == "encoder" and card["terms"] == "made up"
    assert card["kinds"] == ["attic", "cellar"] and card["trained_on"]["steps"] == 6
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["step"], metrics["steps"], metrics["pictures"]) == (6, 6, 23)  # ceil(23 / 8) twice
    assert [row["step"] for row in metrics["history"]] == [3, 6]
    assert metrics["history"][-1]["held_out_accuracy"] in (0, 1)


def test_resuming_after_an_epoch_is_bit_identical(
    finished: Path, tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", tar, "--out", tmp_path / "run", "--epochs", 2, "--terms", "made up"]

    def ctrl_c(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.pretrain.write_json", ctrl_c)  # just after its checkpoint
        assert pretrain(*given) == 130
    assert pretrain(*given, "--resume") == 0
    a, b = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (finished, tmp_path / "run"))
    assert a.state["step"] == b.state["step"] == 6 and b.state["resumed_from"] == [3]
    assert same(a.model, b.model)
    assert same(*(load_file(folder / "encoder.safetensors") for folder in (finished, tmp_path / "run")))


def test_the_loss_falls_on_a_few_pictures(write_tar: WriteTar, tmp_path: Path) -> None:
    """Blue rooms against others: eight pictures are learnt in a few steps."""
    assert pretrain("--data", write_tar(9), "--out", tmp_path, "--epochs", 24, "--lr", "3e-3") == 0
    losses = [row["loss"] for row in json.loads((tmp_path / "metrics.json").read_text())["history"]]
    # A guess costs ln 2. One epoch's loss jumps as the processor rounds; that of the last eight does not.
    assert losses[0] > 0.6 and np.median(losses[-8:]) < 0.6 / 2


@pytest.mark.parametrize("name", ["dispnet_vgg16", "unet_resnet50", "unet"])
def test_every_encoder_can_be_trained(name: str) -> None:
    """Each parameter of the backbone gets a gradient."""
    classifier = Classifier(create_model(name, weights=None), 3)
    logits = classifier(torch.rand(4, 3, 32, 32))
    assert logits.shape == (4, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in classifier.parameters())


def test_a_tar_a_folder_of_tars_and_a_folder_of_pictures_are_the_same(tar: Path, tmp_path: Path) -> None:
    with tarfile.open(tar) as file:
        file.extractall(tmp_path, filter="data")
    by_name = [{p.name: p.read() for p in find_pictures([s])} for s in (tar, tar.parent, tmp_path)]
    assert len(by_name[0]) == 24
    for other in by_name[1:]:
        assert other.keys() == by_name[0].keys()
        assert all(np.array_equal(other[name], by_name[0][name]) for name in other)
    assert {p.kind for p in find_pictures([tmp_path])} == {"attic", "cellar"}


def test_an_unreadable_picture_is_named_and_replaced(
    write_tar: WriteTar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_tar(16, n00005=b"no picture")
    assert pretrain("--data", bad, "--out", tmp_path / "one", "--epochs", 1) == 0
    assert "cellar/00005.webp: not an image in a known format" in capsys.readouterr().err
    none = write_tar(16, **{f"n{number:05d}": b"" for number in range(16)})
    assert pretrain("--data", none, "--out", tmp_path / "two", "--epochs", 1) == 2
    assert ".webp: empty" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_truncated_tar_is_refused(tar: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.tar"
    short.write_bytes(tar.read_bytes()[: find_pictures([tar])[-1].offset + 100])
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
    error_line: Callable[[], str],
    change: list[str],
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": lambda: str(tmp_path / "empty"), "ONE": lambda: str(write_tar(8, ("attic", "attic")))}
    change = [places[word]() if word in places else word for word in change]
    assert pretrain("--data", tar, "--out", tmp_path / "run", *change) == 2
    assert says in error_line()
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_mixed_up(
    tar: Path, write_tar: WriteTar, finished: Path, error_line: Callable[[], str]
) -> None:
    before = (finished / "encoder.safetensors").read_bytes()
    for change, says in (
        (["--data", tar], "holds a run already"),
        (["--data", tar, "--resume", "--lr", "0.5"], "other flags or pictures"),
        (["--data", write_tar(23), "--resume"], "other flags or pictures"),
    ):
        assert pretrain("--out", finished, "--epochs", 2, *change) == 2
        assert says in error_line()
    assert (finished / "encoder.safetensors").read_bytes() == before


def test_an_encoder_of_another_network_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is for 'unet_mobilenet_v3'"):
        create_model("unet_resnet50", weights=None, encoder_weights=finished / "encoder.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="missing"):
        create_model("unet_resnet50", weights=None, encoder_weights=tmp_path / "none.safetensors")
