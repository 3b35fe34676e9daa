"""Who gets which sample of a stream, and when."""

import numpy as np
import pytest

from train.stream_order import Order

COUNT = 22


@pytest.mark.parametrize("world", [1, 2, 3, 7, 22])
def test_the_processes_share_an_epoch(world: int) -> None:
    """Each sample once in every epoch, also with more processes than shards, in pieces alike to one sample."""
    orders = [Order([5, 5, 5, 5, 2], 3, rank, world, 4) for rank in range(world)]
    for epoch in range(2 * world):
        pieces = [order.numbers(epoch) for order in orders]
        assert sorted(number for piece in pieces for number in piece) == list(range(COUNT))
        assert {len(piece) for piece in pieces} <= {COUNT // world, COUNT // world + 1}


@pytest.mark.parametrize("world", [1, 3, 4])
def test_ordinals_run_through_the_epochs(world: int) -> None:
    for rank in range(world):
        order = Order([5, 5, 5, 5, 2], 3, rank, world, 4)
        places = [(epoch, place) for epoch in range(9) for place in range(len(order.numbers(epoch)))]
        assert [order.locate(ordinal) for ordinal in range(len(places))] == places


def test_the_order_is_one_of_seed_and_epoch() -> None:
    def numbers(seed: int, epoch: int, rank: int = 0) -> list[int]:
        return Order([5, 5, 5, 5, 2], seed, rank, 2, 4).numbers(epoch)

    assert numbers(1, 0) == numbers(1, 0)
    assert len({tuple(numbers(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    # A process has another piece each time, whoever reads the first shards.
    assert {frozenset(numbers(1, epoch)) for epoch in range(6)} != {frozenset(numbers(1, 0))}


def test_shards_come_shuffled_and_only_those_of_the_piece() -> None:
    order = Order([100] * 10, 0, 1, 5, 1)
    assert order.piece(0) == (200, 400) and len(order.runs(0)) == 2
    assert len({tuple(run.shard for run in order.runs(epoch)) for epoch in range(8)}) > 4


@pytest.mark.parametrize("size", [1, 4, 50, 1000])
def test_the_buffer_mixes_and_holds_no_more_than_its_size(size: int) -> None:
    order = Order([50] * 4, 0, 0, 1, size)
    read = [50 * run.shard + i for run in order.runs(0) for i in range(50)]
    given = order.numbers(0)
    assert sorted(given) == sorted(read)
    lead = [read.index(number) - place for place, number in enumerate(given)]
    assert max(lead) <= size - (size <= 1)
    moved = np.mean(np.abs(lead))
    assert moved == 0 if size == 1 else moved > min(size, 200) / 5
