"""A run's report: what is in it, and that it needs nothing else."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from depthzoo.metrics import METRICS
from depthzoo.models import create_model
from train.arguments import command
from train.cards import write_weights
from train.evaluation import evaluate, torch_predict
from train.report import choose_samples, parser, run, ticks, write_report
from train.samples import Sample, strip, tiles
from train.shards import ShardDataset

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script>&"\''
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close in order, and keeps text, tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def row(step: int, abs_rel: float) -> dict[str, float]:
    figures = {name: 0.1 * i for i, name in enumerate(METRICS)}
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "images_per_s": 12.3, **figures, "abs_rel": abs_rel}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four validations, the third the best."""
    history = [row(10, 0.4321), row(20, 0.3579), row(30, 0.2468), row(40, 0.3)]
    metrics = {"step": 40, "steps": 50, "best_val_abs_rel": 0.2468, "resumed_from": [25], "history": history}
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "config.toml").write_text(f"# {HOSTILE}\nlr = 0.001\n")
    return path


def sample(key: str = "a", role: str = "best") -> Sample:
    truth = np.linspace(1, 3, 48 * 64, dtype=np.float32).reshape(48, 64)
    image = np.full((48, 64, 3), 200, np.uint8)
    counted = np.ones((48, 64), bool)
    counted[:, :32] = False
    metrics = {"abs_rel": 0.25, "rmse": 0.5, "d1": 0.125}
    return Sample(key, image, truth, truth + 0.5, metrics, counted, role)


def test_the_page_needs_nothing_else_and_has_the_figures(folder: Path) -> None:
    samples = [sample("first", "best"), sample(HOSTILE, "worst")]
    results = {"per_image": dict.fromkeys(METRICS, 0.777), "pooled": dict.fromkeys(METRICS, 0.888)}
    html = write_report(folder, samples, results, f"5 frames {HOSTILE}").read_text()
    page = Page(html)
    assert (
        "script" not in page.tags and HOSTILE in page.text
    )  # as text: in the title, the recipe, the heading
    assert len(page.links) == 8 and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "url(" not in html and "@import" not in html and "<link" not in html
    for shown in (
        "0.4321",
        "0.3579",
        "0.2468",
        "0.777",
        "0.888",
        "lr = 0.001",
        "first",
        ".481",
        "1.072",
        ".427",
    ):
        assert shown in page.text, shown
    assert "step 40 of 50, resumed from step 25" in page.text
    assert page.tags.count("svg") == 6 and page.text.count("resumed at step 25") == 6
    assert "best at step30" in page.text


def test_a_strip_is_a_panel_with_a_title() -> None:
    pixels = strip(sample(), 64)
    assert pixels.dtype == np.uint8 and pixels.shape[1] > 4 * 64 and (pixels[:22] < 128).any()


def test_the_error_is_shown_where_it_counts() -> None:
    image, prediction, target, error = tiles(sample(), 64)
    assert target.legend == prediction.legend and not (target.pixels == prediction.pixels).all()
    assert (error.pixels[:, :32] == int(200 * 0.35)).all()  # the picture, dark
    assert len(np.unique(error.pixels[:, 32:].reshape(-1, 3), axis=0)) == 1  # 0.5 m everywhere
    assert error.legend is not None and error.legend[2] == pytest.approx(0.5, abs=1e-5)
    assert image.legend is None and (image.pixels == 200).all()


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 2400, 3) == [0, 1000, 2000]
    assert ticks(0.19, 0.41) == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4])
    assert ticks(3, 3) == [3]


@pytest.mark.parametrize(("history", "best"), [([], None), ([row(5, 0.5) | {"loss": None}], "0.500")])
def test_a_run_with_hardly_any_history(
    folder: Path, history: list[dict[str, float]], best: str | None
) -> None:
    content = {"step": 5, "steps": 9, "resumed_from": [], "history": history}
    (folder / "metrics.json").write_text(json.dumps(content))
    html = write_report(folder).read_text()
    assert "never resumed" in html and (best is None or f"<b>{best}</b>" in html)


def test_best_median_and_worst(rooms_set: Path) -> None:
    dataset = ShardDataset(rooms_set, "train")
    predict = torch_predict(
        lambda image: image.new_full((len(image), 1, *image.shape[-2:]), 2.0), torch.device("cpu")
    )
    rows = torch.zeros(len(dataset), len(METRICS), dtype=torch.float64)
    rows[:, 0] = torch.tensor([(7 * i) % len(dataset) for i in range(len(dataset))])
    rows[3, 0] = torch.nan  # a frame without truth
    by_error = [int(i) for i in rows[:, 0].argsort() if i != 3]
    samples = choose_samples(predict, dataset, (32, 64), "full", rows, each=1)
    expected = [by_error[0], by_error[(len(by_error) - 1) // 2], by_error[-1]]
    assert [s.role for s in samples] == ["best", "median", "worst"]
    assert [s.key for s in samples] == [dataset.keys[i] for i in expected]
    for s in samples:
        truth = s.target.astype("float64")[s.target > 0]
        assert s.metrics["abs_rel"] == pytest.approx(np.mean(np.abs(2 - truth) / truth), rel=1e-6)
        assert (s.prediction == 2).all()


def test_one_frame_is_shown_once(rooms_set: Path) -> None:
    dataset = ShardDataset(rooms_set, "val")
    predict = torch_predict(lambda image: image[:, :1] + 1, torch.device("cpu"))
    assert len(dataset) == 1
    _, rows = evaluate(predict, dataset, (32, 64), "full")
    assert [s.role for s in choose_samples(predict, dataset, (32, 64), "full", rows)] == ["worst"]


def test_the_command_on_a_run(rooms_set: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = create_model("unet_mobilenet_v3", weights=None)
    card = {"tag": "nyu", "size": [32, 64], "parameters": 3_480_000, "dataset": {"source": "rooms"}}
    card |= {"trained_on": {"device": "CPU"}, "commit": "0123abc", "versions": {"torch": "2.15"}}
    write_weights(model, folder / "model.safetensors", card)
    assert command(parser(), run, [str(folder), "--data", str(rooms_set), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html")]
    page = Page((folder / "report.html").read_text())
    assert "unet_mobilenet_v3 · 3.48M parameters" in page.text
    assert "1 val frames, as stored target, full protocol, 32x64" in page.text and "pooled" in page.text


@pytest.mark.parametrize(
    ("content", "says"), [(None, "has no metrics.json"), ("{", "is not JSON"), ("[]", "has no history")]
)
def test_a_folder_without_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    (folder / "metrics.json").unlink()
    if content is not None:
        (folder / "metrics.json").write_text(content)
    assert command(parser(), run, [str(folder)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0
