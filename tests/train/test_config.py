"""What a recipe may say; the project's own are in test_recipes.py."""

import typing
from pathlib import Path

import pytest

from train.__main__ import parser, run
from train.arguments import command, parse_setting
from train.config import AugmentConfig, TrainConfig, load_recipe, to_toml


def test_a_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = TrainConfig(
        loss={"silog": 1.0, "gradient": 0.5},
        loss_options={"gradient": {"log": True}},
        model_options={"width": 16},
        augment=AugmentConfig(flip=True, zoom=(0.9, 1.4)),
        size=(64, 96),
        sizes=((64, 96), (128, 128)),
        mix=(0.25, 0.5),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert load_recipe(path) == config


def test_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("lr = 0.1\nepochs = 3\n")
    config = load_recipe(path, lr=0.2, epochs=None)
    assert (config.lr, config.epochs) == (0.2, 3)


# A value of each type of a key, as a flag's text and as it is read.
VALUES = {
    int: (["7"], 7),
    float: (["0.25"], 0.25),
    str: (["1"], "1"),
    tuple[int, int]: (["64x96"], (64, 96)),
    tuple[tuple[int, int], ...]: (["64x96", "32x32"], [(64, 96), (32, 32)]),
    tuple[float, ...]: (["0.25", "0.5"], [0.25, 0.5]),
    tuple[str, ...]: (["a", "b.c"], ["a", "b.c"]),
}


@pytest.mark.parametrize(("key", "hint"), typing.get_type_hints(TrainConfig).items())
def test_every_key_has_a_flag_of_its_name(key: str, hint: type) -> None:
    flag, given = "--import" if key == "imports" else f"--{key.replace('_', '-')}", ["--out", "run"]
    if hint is bool:
        for name, value in ((flag, True), (flag.replace("--", "--no-"), False)):
            assert getattr(parser().parse_args([*given, name]), key) is value
    elif hint in VALUES:
        text, value = VALUES[hint]
        assert getattr(parser().parse_args([*given, flag, *text]), key) == value
    else:  # a table
        assert dict(parser().parse_args([*given, "--set", f"{key}.a=[1, 2]"]).set) == {f"{key}.a": [1, 2]}
    assert getattr(parser().parse_args(given), key, None) is None


def test_a_table_is_set_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[augment]\nflip = true\nzoom = [0.5, 1.0]\n[loss]\nmse = 1.0\n")
    words = ["augment.zoom=[0.9,1.1]", "loss.silog=2", "loss_options.silog.lam=0.5", "lr=1e-2"]
    config = load_recipe(path, **dict(map(parse_setting, words)))
    assert config.augment == AugmentConfig(flip=True, zoom=(0.9, 1.1))
    assert (config.loss, config.lr) == ({"mse": 1.0, "silog": 2.0}, 0.01)
    assert config.loss_options == {"silog": {"lam": 0.5}}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--emma", "0.9"], "unrecognized arguments: --emma 0.9; did you mean --ema?"),
        (["--bach-size=4"], "did you mean --batch-size?"),
        (["--set", "augment.zoon=1"], "unknown key 'augment.zoon': did you mean 'zoom'?"),
        (["--set", "lr.x=1"], "lr.x: lr is no table"),
        (["--set", "lr"], "'lr' is not KEY=VALUE, as in augment.zoom=[0.9,1.1]"),
    ],
)
def test_an_unknown_flag_names_the_closest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text("lr = 0.1\n")
    code: int | str | None = None
    try:
        code = command(parser(), run, ["--recipe", str(path), "--out", str(tmp_path / "run"), *flags])
    except SystemExit as error:
        code = error.code
    assert code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "all.toml").write_text(
        "lr = 0.1\nepochs = 3\n[loss]\nmse = 1.0\n[augment]\nflip = true\n"
    )
    path = tmp_path / "r.toml"
    path.write_text('base = "base/all.toml"\nepochs = 4\n[loss]\nberhu = 1.0\n')
    config = load_recipe(path, seed=7)
    assert (config.lr, config.epochs, config.seed, config.augment.flip) == (0.1, 4, 7, True)
    assert config.loss == {"berhu": 1.0}
    assert "base" not in to_toml(config)


def test_a_recipe_that_builds_on_itself_or_on_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(ValueError, match=r"a\.toml: base leads back to it"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('base = "c.toml"\n')
    with pytest.raises(ValueError, match=r"c\.toml cannot be read: No such file"):
        load_recipe(tmp_path / "a.toml")


def test_a_single_fraction_needs_no_list(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, mix in (("mix = 0.25", (0.25,)), ("mix = 0.0", ())):
        path.write_text(text)
        assert load_recipe(path).mix == mix


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rate = 1", "unknown key 'learning_rate': did you mean 'lr'"),
        ("batchsize = 4", "did you mean 'batch_size'"),
        ("[augment]\nflipp = true", "unknown key 'augment.flipp': did you mean 'flip'"),
        ("batch_size = '4'", "batch_size = '4': expected int"),
        ("batch_size = true", "expected int"),
        ("lr = 'fast'", "expected float"),
        ("size = [192]", "size = \\[192\\]"),
        ("size = [8, 8]", "at least 32"),
        ("schedule = 'cosine'", "expected one of onecycle"),
        ("batch_size = 0", "more than 0"),
        ("ema = 1.0", "ema"),
        ("[loss]\nmse = 'much'", "loss.mse"),
        ("augment = 3", "augment must be a table"),
        ("[augment]\nzoom = [2.0, 1.0]", "augment.zoom"),
        ("lr = ", "is not TOML"),
        ("base = 3", "base = 3: expected str"),
        ("frames = -1", "frames = -1: expected 0 or more"),
        ("steps = -5", "steps = -5: expected 0 or more"),
        ("steps = 0\nepochs = 0", "epochs = 0: expected more than 0, or steps"),
        ("seed = -1", "seed = -1: expected 0 or more"),
        ("lr = nan", "lr = NaN: expected a finite number"),
        ("clip = inf", "clip = Infinity: expected a finite number"),
        ("warmup = 1.5", "warmup = 1.5: expected 0 <= warmup < 1"),
        ("mix = [0.5, 0.5]", r"mix = \[0.5, 0.5\]: expected fractions, in sum below 1"),
        ("sizes = [[64, 64], [8, 64]]", "sizes = .*: expected pairs"),
        ("balance = 2.0", "balance = 2.0: expected 0 to 1"),
        ("batch_size = 5\naccumulate = 2", "batch_size = 5: expected a multiple of accumulate"),
    ],
)
def test_a_bad_recipe_is_one_line_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        load_recipe(tmp_path / "none.toml")
