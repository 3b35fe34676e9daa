"""Orders and draws: functions of seed, epoch and index."""

import numpy as np
import pytest

from train.order import Draws, draw_integer, permutation, rarity, sample_draws, weighted_order


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    orders = [permutation(3, epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(permutation(3, 1, 50), orders[1])
    assert (permutation(4, 1, 50) != orders[1]).any()


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    np.testing.assert_array_equal(sample_draws(3, 4, 5), sample_draws(3, 4, 5))
    others = [sample_draws(3, 4, 6), sample_draws(3, 5, 5), sample_draws(4, 4, 5)]
    assert all((other != sample_draws(3, 4, 5)).all() for other in others)
    many = np.stack([sample_draws(0, 0, index) for index in range(2000)])
    assert many.mean(0) == pytest.approx(np.full(len(Draws._fields), 0.5), abs=0.03)


def test_integers_are_uniform() -> None:
    drawn = np.bincount([draw_integer(1, step, 5) for step in range(2000)], minlength=5)
    assert len(drawn) == 5 and drawn == pytest.approx(np.full(5, 400), abs=80)


def test_a_weighted_epoch_draws_each_frame_as_often_as_its_weight() -> None:
    weights = np.array([0.5, 1.0, 2.0, 0.5])
    counts = np.zeros(4)
    for epoch in range(400):
        order = weighted_order(3, epoch, weights)
        drawn = np.bincount(order % 4, minlength=4)
        # A repeated sample has another number, and so other draws.
        assert len(order) == 4 and len(set(order.tolist())) == 4
        assert (np.floor(weights) <= drawn).all() and (drawn <= np.ceil(weights)).all()
        counts += drawn
    assert counts / 400 == pytest.approx(weights, abs=0.1)
    np.testing.assert_array_equal(weighted_order(3, 7, weights), weighted_order(3, 7, weights))


def test_rare_depths_weigh_more() -> None:
    medians = np.log(np.concatenate([np.full(90, 2.5), np.full(9, 1.2), [0.7], [np.nan]]))
    weights = rarity(medians, 0.5)
    assert weights[0] == pytest.approx(1) and weights[-1] == 1
    # Ten times as rare, drawn about 10 ** 0.5 times as often.
    assert weights[90] == pytest.approx(10**0.5, rel=0.1) and weights[99] == 5
    assert (rarity(medians, 0.0) == 1).all() and (rarity(np.full(3, np.nan), 0.5) == 1).all()
