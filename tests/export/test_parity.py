import numpy as np
import pytest

from depthzoo.models import DepthModel
from export.parity import RANDOM, Parity, Reference, compare, eager, shapes_to_compare
from export.pictures import Pictures

SMALL = ((1, 3, 32, 64), (2, 3, 64, 32))


def found(**figures: float) -> Parity:
    return Parity(
        **{"max": 0.0, "mean": 0.0, "most": 0.0, "share_max": 0.0, "share_mean": 0.0} | figures,
        bound={"mean": 2e-3, "most": 2e-2, "max": 0.1},
        against="trained weights",
        shapes=((3, 3, 32, 64), (2, 97, 131, 3)),
        pictures="synthetic rooms",
    )


def test_every_figure_with_a_bound_must_hold() -> None:
    assert found().holds and found(max=0.1, share_max=9.0).holds
    for name, bound in found().bound.items():
        assert not found(**{name: bound * 1.01}).holds
        assert not found(**{name: float("nan")}).holds  # no agreement


def test_it_reads_well() -> None:
    text = str(found(max=0.05, mean=1e-3))
    assert text.startswith("max 5.0e-02 m, mean 1.0e-03 m, 99.9% 0.0e+00 m (bound: ")
    assert text.endswith("trained weights), at 3x32x64, 2x97x131, on synthetic rooms")


def test_figures_of_a_known_difference(tiny: DepthModel) -> None:
    reference = eager(tiny, (64, 96))

    def shifted(images: np.ndarray) -> np.ndarray:
        depth = reference.run(images)
        depth[0, 0, 0, 0] += 0.5
        return depth + 0.25

    parity = compare(reference, [reference.run, shifted], SMALL, Pictures())
    pixels = 32 * 64 + 2 * 64 * 32
    assert parity.max == pytest.approx(0.75, abs=1e-5)
    assert parity.mean == pytest.approx(0.25 + 2 * 0.5 / pixels, abs=1e-5)
    assert parity.most == pytest.approx(0.25, abs=1e-5)
    assert not parity.holds and parity.bound == RANDOM["fp32"]


def test_nothing_but_numbers_agree(tiny: DepthModel) -> None:
    reference = eager(tiny, (64, 96))
    parity = compare(reference, [lambda images: reference.run(images) * np.nan], SMALL, Pictures())
    assert np.isnan(parity.max) and not parity.holds


def test_another_shape_is_an_error(tiny: DepthModel) -> None:
    reference = eager(tiny, (64, 96))
    with pytest.raises(ValueError, match="expected"):
        compare(reference, [lambda images: reference.run(images)[:, :, ::2]], SMALL, Pictures())


def test_random_weights_are_held_to_the_spread_of_their_logits() -> None:
    # Logits between -1 and 1, all but flat in metres: a range of 0.02 m around 5 m.
    low, high = 4.98, 5.02
    logits = np.linspace(-1, 1, 32 * 64).reshape(1, 1, 32, 64)

    def depth(x: np.ndarray) -> np.ndarray:
        return low + (high - low) / (1 + np.exp(-x))

    reference = Reference(lambda _: depth(logits), False, (low, high))
    parity = compare(reference, [lambda _: depth(logits + 0.1)], SMALL[:1], Pictures())
    assert parity.max < 1e-3
    assert parity.share_max == pytest.approx(0.05, rel=1e-6)
    assert parity.share_mean == pytest.approx(0.05, rel=1e-6)
    assert not parity.holds
    linear = Reference(lambda _: logits, False, None)
    parity = compare(linear, [lambda _: logits + 0.1], SMALL[:1], Pictures())
    assert parity.share_max == pytest.approx(0.05, rel=1e-6)


def test_bytes_are_resized_as_the_predictor_does(tiny: DepthModel) -> None:
    reference = eager(tiny, (64, 96))
    images = Pictures().batch(2, (97, 131))
    assert reference.run(images).shape == (2, 1, 97, 131)
    exact = eager(tiny, (64, 96), exact=True)
    tall = Pictures().batch(1, (200, 40))
    assert np.abs(reference.run(tall) - exact.run(tall)).max() > 0.01


def test_shapes_are_untraced_whatever_the_file_takes() -> None:
    assert all(len(shapes_to_compare(size, uint8)) == 3 for size in (None, (64, 96)) for uint8 in (0, 1))
    assert all(shape[-1] == 3 and shape[1] % 32 for shape in shapes_to_compare(None, True)[1:2])
