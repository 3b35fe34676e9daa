"""The generated tables against literals, for result files of a machine that does not exist."""

import json
from pathlib import Path

import pytest

from benchmarks.readme import gpu
from benchmarks.report import accuracy_tables, latency_tables, markdown, reproduction_tables, training_tables

SOURCE = (
    "<sub>Z80, 2 threads, load before 0.2; depthzoo 0.1.0, python 3.11.7, torch 2.15.0; commit 0123456+; "
    "`python benchmarks/{}`</sub>"
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (0.01234, "0.012"),
        (1.234, "1.23"),
        (99.96, "100.0"),
        (123.4, "123"),
        (12345.6, "12,346"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert markdown.number(value) == text
    assert markdown.number(None) == ""


def test_a_row_has_a_cell_for_each_column() -> None:
    assert markdown.table(["a", "b"], [["x", ""]]) == "| a | b |\n|---|--:|\n| x | |"
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        markdown.table(["a", "b"], [["x"]])


def test_bytes_of_files_and_of_memory() -> None:
    assert markdown.size(52_657_100) == "52.7 MB" and markdown.size(1.5e9) == "1.50 GB"
    assert markdown.memory(300 * 2**20) == "300 MiB" and markdown.memory(3 * 2**30) == "3.00 GiB"


def test_latency(made_results: Path) -> None:
    text = latency_tables.latency(made_results)
    expected = (
        "**Z80, 2 threads, 480x640, batch 1**, median milliseconds\n\n"
        "| model | parameters | GFLOP | eager | onnxruntime | onnxruntime int8 |\n"
        "|---|--:|--:|--:|--:|--:|\n"
        "| `unet_mobilenet_v3` | 3.5M | 4.92 | 100 | 50.0 | 20.0 |\n"
        "| *smp Unet(resnet50)* | 32.5M | 71.0 | 800 | | |\n\n"
        "Not measured: compile (no compiler).\n\n"
    )
    assert text.startswith(expected)
    assert (
        "| `unet_mobilenet_v3` | onnxruntime | 50.0 | 45.0 to 75.0 | 30 | 250 | 80.0 | 20.0 | 300 MiB | 25.0 | 50% |"
    ) in text
    # No floor was measured for INT8.
    assert "| onnxruntime int8 | 20.0 | 18.0 to 30.0 | 30 | 250 | | 50.0 | 300 MiB | | |" in text
    assert SOURCE.format("latency.py --size 480x640") in text and "192x256, batch 1**" in text
    assert "197 GFLOP/s in fp32 (numpy); copy 12.0 GB/s" in text
    assert text.endswith("Not measured yet on a GPU.")


def test_what_one_gpu_measured_stands_apart_from_another(gpu_results: Path) -> None:
    text = latency_tables.latency(gpu_results)
    assert "**Voodoo 2, 480x640, batch 1**" in text and "**Voodoo 3, 480x640, batch 1**" in text
    assert "| `unet_mobilenet_v3` | 3.5M | 4.92 | 10.0 | 5.00 | 2.00 |" in text
    assert "<sub>Voodoo 2, driver 580.1, CUDA 13.0, cuDNN 91300, load before 0.2; " in text
    assert "Not measured yet" not in text


def test_inputs_are_told_where_they_differ(made_results: Path) -> None:
    path = made_results / "latency.cpu.json"
    run = json.loads(path.read_text())["runs"][0] | {"size": [240, 320]}
    for row in run["rows"]:
        row["size"] = [240, 320] if row["backend"] == "eager" else [256, 320]
    path.write_text(json.dumps({"runs": [run]}))
    text = latency_tables.latency(made_results)
    assert "| model | input | parameters | GFLOP | eager | onnxruntime | onnxruntime int8 |" in text
    assert "| `unet_mobilenet_v3` | 240x320 | 3.5M | 4.92 | 100 | | |" in text
    assert "| `unet_mobilenet_v3` | 256x320 | 3.5M | 4.92 | | 50.0 | 20.0 |" in text
    head = (
        "| peer | input | eager ms | `unet_mobilenet_v3` eager | `unet_mobilenet_v3` onnxruntime at 256x320 |"
    )
    assert head in latency_tables.peers(made_results)


def test_what_was_not_timed_in_turn_is_said(made_results: Path) -> None:
    """A second run has less of the one model, and is the only one of another."""
    path = made_results / "latency.cpu.json"
    whole = json.loads(path.read_text())["runs"][0]
    rows = [whole["rows"][0] | {"median": 77.0}, whole["rows"][0] | {"model": "unet", "median": 900.0}]
    path.write_text(json.dumps({"runs": [whole, whole | {"rows": rows, "missing": {}}]}))
    text = latency_tables.summary(made_results)
    assert "| `unet_mobilenet_v3` | 3.5M | 4.92 | 100 | 50.0 | 20.0 |" in text and "77.0" not in text
    assert text.endswith(
        "Timed in 2 runs, of which only one's models are to be compared: "
        "`unet_mobilenet_v3`, *smp Unet(resnet50)*; `unet`."
    )


def test_a_smaller_batch_than_asked_for_is_said(made_results: Path) -> None:
    path = made_results / "latency.cpu.json"
    stored = json.loads(path.read_text())
    run = stored["runs"][0] | {"batch": 16}
    for row in run["rows"]:
        row["batch"] = 16
    run["rows"][0]["batch"] = 8
    path.write_text(json.dumps({"runs": [run]}))
    text = latency_tables.latency(made_results)
    assert "| eager (batch 8) |" in text and text.count("(batch 8)") == 1
    # GFLOP are of the whole batch in the file, of a picture in the table.
    assert (
        "| `unet_mobilenet_v3` | 3.5M | 0.307 |" in text or "| `unet_mobilenet_v3` | 3.5M | 0.615 |" in text
    )


def test_peers_are_held_against_the_zoo_in_the_same_run(made_results: Path) -> None:
    text = latency_tables.peers(made_results)
    assert "| *smp Unet(resnet50)* | 480x640 | 800 | 8.0 | 16.0 | 40.0 |" in text
    assert "| peer | input | eager ms | `unet_mobilenet_v3` eager | `unet_mobilenet_v3` onnxruntime |" in text
    path = made_results / "latency.cpu.json"
    stored = json.loads(path.read_text())
    for run in stored["runs"]:
        run["rows"] = [row for row in run["rows"] if not row["peer"]]
    path.write_text(json.dumps(stored))
    assert latency_tables.peers(made_results) == "Not measured yet."


def test_the_summary_has_one_size(made_results: Path) -> None:
    text = latency_tables.summary(made_results)
    assert text.count("**") == 2 and "480x640, batch 1" in text and "| *smp Unet(resnet50)* |" in text


def test_predictor(made_results: Path) -> None:
    whats = {"network": 20.0, "Predictor, file": 23.0, "Predictor, array": 21.0, "step: decode": 3.0}
    rows = [{"what": what, "model": "unet", "size": [96, 128], "median": ms} for what, ms in whats.items()]
    for row in rows[1:3]:
        row["over_forward"] = row["median"] / 20 - 1
    (other, *_) = json.loads((made_results / "latency.cpu.json").read_text())["runs"]
    run = other | {"picture": [480, 640], "rows": rows}
    (made_results / "predictor.cpu.json").write_text(json.dumps({"runs": [run]}))
    assert latency_tables.predictor(made_results).startswith(
        "**Z80, 2 threads, a picture of 480x640**, median milliseconds\n\n"
        "| model | works at | network, channels_last | Predictor, file | Predictor, array |\n"
        "|---|---|--:|--:|--:|\n"
        "| `unet` | 96x128 | 20.0 | 23.0 (+15%) | 21.0 (+5%) |\n"
    )


def test_training(made_results: Path) -> None:
    assert training_tables.training(made_results) == (
        "**Z80, 2 threads, 96x128**\n\n"
        "| model | way | batch | in | images/s | lowest to highest | of the floor | memory "
        "| times the seed's images/s | of its memory |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        "| `unet` | seed | 4 | fp32 | 2.00 | 1.00 to 9.00 | | 4.00 GiB | | |\n"
        "| `unet` | ours | 4 | fp32 | 7.00 | 1.00 to 9.00 | | 1.00 GiB | 3.50 | 0.25 |\n\n"
        "Memory by resident set.\n\n" + SOURCE.format("training.py") + "\n\nNot measured yet on a GPU."
    )


def test_largest_batch(made_results: Path) -> None:
    assert training_tables.largest_batch(made_results) == (
        "**Z80, 2 threads, 96x128**\n\n"
        "| model | 16 GB | 16 GB, recompute | 80 GB | 80 GB, recompute |\n"
        "|---|--:|--:|--:|--:|\n"
        "| `unet` | 16\\* | 32\\* | 80\\* | 160\\* |\n\n"
        "\\* counted from the tensors that a step makes and holds, not tried out.\n\n"
        + SOURCE.format("training.py")
    )


def test_scaling_and_its_exponents(made_results: Path) -> None:
    text = training_tables.scaling(made_results)
    assert text.startswith(
        "**Z80, 2 threads, images/s over pixels**\n\n"
        "| pixels |  | 1,000 | 2,000 | 4,000 | exponent | at the end |\n"
        "|---|---|--:|--:|--:|--:|--:|\n"
        "| `unet` | training, batch 4 | 8.00 | 4.00 | 2.00 | +1.00 | +1.00 |\n\n"
        + SOURCE.format("scaling.py")
    )
    assert "| `unet` | training, 96x128 | 3.00 | 3.00 | +0.00 | +0.00 |" in text
    assert "Not measured: unet, training, 4 (out of memory)." in text
    assert "| `loader` | augmented batches, 96x128, batch 4, from memory 70.0 | 50.0 | 60.0 | | |" in text
    assert text.endswith("Not measured yet on a GPU.")


def test_nothing_measured_says_so(tmp_path: Path) -> None:
    both = "Not measured yet on a CPU.\n\nNot measured yet on a GPU."
    for table in (
        latency_tables.latency,
        latency_tables.predictor,
        training_tables.training,
        training_tables.scaling,
    ):
        assert table(tmp_path) == both
    for table in (latency_tables.summary, latency_tables.peers, training_tables.largest_batch):
        assert table(tmp_path) == "Not measured yet."
    for table in (accuracy_tables.export_accuracy, accuracy_tables.overfit):
        assert table(tmp_path) == "Not measured yet."


def test_figures_of_a_gpu_are_owed_until_there_are_some(made_results: Path, tmp_path: Path) -> None:
    owed = "GPU figures are not measured yet: `benchmarks/gpu.sh` measures them on a machine that has one."
    assert gpu(made_results) == gpu(tmp_path) == owed


def test_of_a_gpu_only_what_was_measured_is_claimed(gpu_results: Path) -> None:
    text = gpu(gpu_results)
    assert text == (
        "Measured on a GPU: latency (Voodoo 2, Voodoo 3). Not measured yet: training, scaling, predictor."
    )


def test_a_broken_result_file_is_named(made_results: Path) -> None:
    (made_results / "training.cpu.json").write_text("{}")
    with pytest.raises(ValueError, match=r"training.cpu.json: not a result file"):
        training_tables.training(made_results)


def test_reproduction(made_results: Path) -> None:
    assert reproduction_tables.reproduction(made_results) == "Not measured yet."
    assert reproduction_tables.claims(made_results) == "Not measured yet."
    row = {"abs_rel": 0.3, "rmse": 1.0, "d1": 0.5, "edge_f1": 0.25, "peak": 1.5}
    rows = {
        "mse": {str(seed): row | {"lines": 2.0 + seed} for seed in range(3)},
        "bilinear": {str(seed): row | {"lines": 0.5, "abs_rel": 0.25} for seed in range(3)},
        "mse_longer": {"0": row | {"lines": 2.0}},
    }
    (run, *_) = json.loads((made_results / "training.cpu.json").read_text())["runs"]
    run |= {"command": "python benchmarks/reproduce.py", "split": "test", "count": 654, "rows": rows}
    run |= {"size": [64, 96], "epochs": 10, "frames": None, "batch_size": 4, "width": 16}
    (made_results / "reproduction.cpu.json").write_text(json.dumps({"runs": [run]}))
    text = reproduction_tables.reproduction(made_results)
    assert text.startswith(
        "**64x96, 10 passes, batches of 4, U-Nets that begin with 16 channels; 654 test frames**\n\n"
        "| row | seeds | AbsRel | RMSE | d1 | edge F1 | lines | peak |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|\n"
        "| `mse` | 3 | 0.300 (0.300 to 0.300) | 1.000 (1.000 to 1.000) | 0.500 (0.500 to 0.500) | "
        "0.250 (0.250 to 0.250) | 3.000 (2.000 to 4.000) | 1.500 (1.500 to 1.500) |\n"
    )
    assert "| `mse_longer` | 1 | 0.300 | 1.000 | 0.500 | 0.250 | 2.000 | 1.500 |" in text
    assert (
        "| bilinear upsampling removes the lines | lines of `bilinear` against `mse` | 0.500 against 3.000 "
        "| 3 of 3 | holds |"
    ) in text
    assert text.endswith(SOURCE.format("reproduce.py"))
    short = reproduction_tables.claims(made_results)
    assert (
        short.splitlines()[0] == text.splitlines()[0]
        and "| 3 of 3 | holds |" in short
        and short in text.replace(text[text.index("| row") : text.index("| claim")], "")
    )
    # A row that --width does not narrow is said to be wider than those beside it.
    run["rows"]["dispnet"] = rows["mse"]
    (made_results / "reproduction.cpu.json").write_text(json.dumps({"runs": [run]}))
    first = reproduction_tables.claims(made_results).splitlines()[0]
    assert ", U-Nets that begin with 16 channels, other networks whole; 654" in first


def test_errors_by_distance_of_the_cards_that_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bands = [
        {"metres": [0, 1], "share": 0.25, "abs_rel": 0.5, "bias": 0.4},
        {"metres": [5, 10], "share": 0.75, "abs_rel": 0.2, "bias": -0.1},
    ]
    cards = {"unet": {"failures": {"by_distance": bands}}, "unet_resnet50": {}}
    monkeypatch.setattr(accuracy_tables, "list_models", lambda **_: list(cards))
    monkeypatch.setattr(accuracy_tables.weights, "tags", lambda name: ["nyu"])
    monkeypatch.setattr(accuracy_tables.weights, "card", lambda name, tag: cards[name])
    assert accuracy_tables.by_distance(tmp_path) == (
        "| model | tag | 0 to 1 m | 5 to 10 m |\n|---|---|--:|--:|\n| share of the pixels | | 25% | 75% |\n"
        "| `unet` | `nyu` | 0.500 (+40%) | 0.200 (-10%) |"
    )
    del cards["unet"]
    assert accuracy_tables.by_distance(tmp_path) == "Not measured yet."
