"""A model from a name, a file, a folder or the Hugging Face Hub, and back into one."""

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import depthzoo
from depthzoo import weights
from depthzoo.errors import WeightsError
from depthzoo.models import DepthModel

OPTIONS = {"width": 4, "max_depth": 80.0, "mean_depth": 20.0, "out_channels": 2}
CARD = {
    "size": [96, 128],
    "camera": {"name": "mine"},
    "terms": "free",
    "dataset": {"source": "rooms"},
    "metrics": {"per_image": {"abs_rel": 0.1}},
    "failures": {"worst": []},
}


@pytest.fixture
def model() -> DepthModel:
    torch.manual_seed(0)
    return depthzoo.unet(pretrained=False, **OPTIONS).eval()


def same(a: DepthModel, b: DepthModel) -> bool:
    """Equal up to the rounding of matrices to float16."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.allclose(a(x), b(x), rtol=1e-2)


class TestLoad:
    def test_a_name_a_file_and_a_folder(self, model: DepthModel, tmp_path: Path, monkeypatch: Any) -> None:
        model.save(tmp_path / "run" / "model.safetensors")
        monkeypatch.chdir(tmp_path)
        for source in (tmp_path / "run" / "model.safetensors", tmp_path / "run", "run", "./run/"):
            loaded = depthzoo.load(source)
            assert same(loaded, model) and not loaded.training
            assert (loaded.name, loaded.arguments) == ("unet", OPTIONS)
        assert depthzoo.load("unet", pretrained=False, width=2).arguments == {"width": 2}
        trained = depthzoo.load("unet_mobilenet_v3")
        assert trained.card == depthzoo.create_model("unet_mobilenet_v3", pretrained=True).card is not None
        # The name of a model wins over a folder of that name; a Path is a path.
        (tmp_path / "run").rename("unet_mobilenet_v3")
        assert depthzoo.load("unet_mobilenet_v3").name == "unet_mobilenet_v3"
        assert depthzoo.load(Path("unet_mobilenet_v3")).name == "unet"

    @pytest.mark.parametrize(
        ("source", "options", "error", "said"),
        [
            (
                "unet_resnet5",
                {},
                ValueError,
                "no model and no file 'unet_resnet5': did you mean 'unet_resnet50'",
            ),
            ("runs/gone", {}, WeightsError, "runs/gone: weights file does not exist"),
            (3, {}, TypeError, "source must be the name of a model or a path, not int"),
            (
                "a.safetensors",
                {"weights": None},
                TypeError,
                "is a weights file itself; weights is for the name",
            ),
            ("a.safetensors", {"widht": 4}, TypeError, "unknown option 'widht': did you mean 'width'"),
            ("a.safetensors", {"width": 8}, WeightsError, r"a.safetensors was trained with width=4, not 8$"),
            (
                "a.safetensors",
                {"max_depth": 10.0},
                WeightsError,
                r"max_depth=80.0, not 10.0; model\.reset_head\(max_depth=10.0\)",
            ),
            (
                "other.safetensors",
                {},
                WeightsError,
                "for the model 'unte', which is not registered; there are: ",
            ),
            (
                "plain.safetensors",
                {},
                WeightsError,
                r"which model it is for; create_model\(NAME, weights=FILE\)",
            ),
        ],
    )
    def test_what_cannot_be_loaded(
        self,
        model: DepthModel,
        tmp_path: Path,
        monkeypatch: Any,
        one_line: Any,
        source: Any,
        options: dict[str, Any],
        error: type[Exception],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        model.save("a.safetensors")
        weights.save_weights("other.safetensors", model.state_dict(), {"model": "unte"})
        weights.save_weights("plain.safetensors", model.state_dict(), {})
        with pytest.raises(error, match=said) as caught:
            depthzoo.load(source, **options)
        one_line(caught)

    def test_not_onto_the_meta_device(self, model: DepthModel, tmp_path: Path, recwarn: Any) -> None:
        model.save(tmp_path / "a.safetensors")
        with torch.device("meta"), pytest.raises(WeightsError, match="unet: is on the meta device") as caught:
            depthzoo.load(tmp_path / "a.safetensors")
        assert caught.value.advice in str(caught.value) and "weights=None" not in caught.value.problem
        assert not recwarn.list


class TestSave:
    def test_the_header_says_what_the_file_is(self, model: DepthModel, tmp_path: Path) -> None:
        path = tmp_path / "new" / "a.safetensors"
        model.save(path, size=[96, 128], note="mine", model="no", arguments={})
        assert weights.read_metadata(path) == {
            "model": "unet",
            "arguments": OPTIONS,
            "parameters": sum(p.numel() for p in model.parameters()),
            "unit": "m",
            "depth_range": [0.001, 80.0],
            "size": [96, 128],
            "note": "mine",
        }
        assert depthzoo.Predictor(depthzoo.load(path), "cpu").size == (96, 128)
        model.reset_head(head="linear").save(path, half=False)
        assert "depth_range" not in weights.read_metadata(path)
        loaded = depthzoo.load(path)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        with pytest.raises(WeightsError, match="the card is not JSON"):
            model.save(tmp_path / "b.safetensors", note=path)

    def test_metrics_are_those_of_the_weights_that_they_were_measured_on(
        self, model: DepthModel, tmp_path: Path
    ) -> None:
        first, second, third = (tmp_path / f"{i}.safetensors" for i in range(3))
        model.save(first, **CARD)
        depthzoo.load(first).save(second, recipe="two epochs")
        card = weights.read_metadata(second)
        assert not {"metrics", "failures", "dataset"} & card.keys()
        assert (card["size"], card["camera"], card["terms"]) == ([96, 128], {"name": "mine"}, "free")
        assert card["recipe"] == "two epochs"
        assert card["initialised_from"] == {"dataset": {"source": "rooms"}}
        # A new head is one step of training, not two.
        other = depthzoo.load(first).reset_head(1)
        assert "metrics" not in other.card and other.card["size"] == [96, 128]
        other.save(third)
        assert weights.read_metadata(third)["initialised_from"] == {"dataset": {"source": "rooms"}}
        # A card is kept whole by request.
        same_weights = depthzoo.load(first)
        same_weights.save(second, **same_weights.card)
        assert second.read_bytes() == first.read_bytes()


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("huggingface_hub")

    def test_a_folder(self, model: DepthModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "mine", card={"terms": "research use", "size": [64, 96]})
        assert {p.name for p in (tmp_path / "mine").iterdir()} == {
            "README.md",
            "config.json",
            "model.safetensors",
        }
        config = json.loads((tmp_path / "mine" / "config.json").read_text())
        assert config == {"model": "unet", "arguments": OPTIONS}
        readme = (tmp_path / "mine" / "README.md").read_text()
        assert "library_name: depthzoo" in readme and "pipeline_tag: depth-estimation" in readme
        assert "`unet` of" in readme and "research use" in readme
        assert depthzoo.from_pretrained("unet_mobilenet_v3").name == "unet_mobilenet_v3"
        for loaded in (depthzoo.from_pretrained(tmp_path / "mine"), depthzoo.load(tmp_path / "mine")):
            assert same(loaded, model) and loaded.card["size"] == [64, 96]

    def test_a_repository(self, model: DepthModel, tmp_path: Path, monkeypatch: Any) -> None:
        """The calls that would use the network are answered here."""
        import huggingface_hub.hub_mixin as mixin

        from depthzoo import hub

        calls: list[dict[str, Any]] = []

        class Api:
            def __init__(self, token: str | None = None) -> None:
                calls.append({"token": token})

            def create_repo(self, **options: Any) -> Any:
                calls.append(options)
                return type("Url", (), {"repo_id": options["repo_id"]})

            def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
                calls.append(options)
                folder_path.rename(tmp_path / "uploaded")
                return "https://huggingface.co/me/depth/commit/1"

        monkeypatch.setattr(mixin, "HfApi", Api)
        assert model.push_to_hub("me/depth", private=True, token="t").startswith(
            "https://huggingface.co/me/depth"
        )
        assert calls[0] == {"token": "t"} and calls[1]["private"] and calls[2]["repo_id"] == "me/depth"
        assert 'from_pretrained("me/depth")' in (tmp_path / "uploaded" / "README.md").read_text()

        def download(repo_id: str, filename: str, **options: Any) -> str:
            assert (repo_id, options) == ("me/depth", {"revision": "v1"})
            return str(tmp_path / "uploaded" / filename)

        monkeypatch.setattr(hub, "hf_hub_download", download)
        assert same(depthzoo.from_pretrained("me/depth", revision="v1"), model)

    def test_what_the_hub_does_not_have(self, tmp_path: Path, one_line: Any) -> None:
        for repository in ("me/none", "not a name"):
            with pytest.raises(WeightsError, match=f"^Hugging Face Hub: {repository}: cannot") as caught:
                depthzoo.from_pretrained(repository, local_files_only=True, cache_dir=tmp_path)
            one_line(caught)


def test_without_huggingface_hub(
    model: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Any
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.delitem(sys.modules, "depthzoo.hub", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    for use in (lambda: model.save_pretrained(tmp_path / "x"), lambda: depthzoo.from_pretrained("me/depth")):
        with pytest.raises(ImportError, match="pip install huggingface_hub") as caught:
            use()
        one_line(caught)
    # A folder needs no huggingface_hub.
    model.save(tmp_path / "y" / "model.safetensors")
    assert same(depthzoo.from_pretrained(tmp_path / "y"), model)


USES = """
import depthzoo, torch
model = depthzoo.create_model("unet", pretrained=True, max_depth=80.0)
reveal_type(model(torch.rand(1, 3, 64, 64)))
reveal_type(model(torch.rand(1, 3, 64, 64), all_heads=True))
depthzoo.create_model("unet", max_dpeth=80.0)
depthzoo.unet(head="softmax")
model.reset_head(out_channels="2")
depthzoo.creat_model("unet")
"""


@pytest.mark.slow
def test_type_checkers_see_results_and_mistakes(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USES)
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--cache-dir", str(tmp_path), "use.py"]
    environment = {"MYPYPATH": str(root), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("use.py")]
    lines = [line for line in lines if "defined in" not in line]
    said = [
        'note: Revealed type is "torch._tensor.Tensor"',
        'note: Revealed type is "list[torch._tensor.Tensor]"',
        'error: Unexpected keyword argument "max_dpeth"',
        'error: Argument "head" to "unet" has incompatible type',
        'error: Argument "out_channels" to "reset_head" of "DepthModel" has incompatible type',
        'error: Module has no attribute "creat_model"',
    ]
    assert len(lines) == len(said), done.stdout
    assert all(part in line for part, line in zip(said, lines, strict=True)), lines
