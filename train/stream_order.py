"""The order of a stream of shards: a function of (seed, epoch, rank, world) alone.

An epoch shuffles the shards, lays their samples end to end and cuts them into as many pieces as there are
processes, alike to one sample; which piece a process gets moves on with the epoch. So each sample comes once an
epoch, however many shards there are, and a process reads its piece's shards and no others (the shards that are cut
are read by two). Within its piece a buffer of samples, not yet decoded, mixes what lies near each other.
"""

from dataclasses import dataclass

import numpy as np

from train.loading import generator, permutation


@dataclass(frozen=True)
class Run:
    """Samples first, ..., last - 1 of a shard."""

    shard: int
    first: int
    last: int


class Order:
    """In which order a process reads the samples of its piece of an epoch, and in which it gives them.

    Args:
        counts: samples of each shard.
        seed: of the order.
        rank, world: the process, of how many.
        shuffle: samples of the buffer.
    """

    def __init__(self, counts: list[int], seed: int, rank: int, world: int, shuffle: int) -> None:
        self.counts, self.seed, self.rank, self.world, self.shuffle = counts, seed, rank, world, shuffle
        self.total = sum(counts)
        self.starts = np.cumsum([0, *counts])

    def piece(self, epoch: int) -> tuple[int, int]:
        """Start and end of the piece."""
        place = (self.rank + epoch) % self.world
        return self.total * place // self.world, self.total * (place + 1) // self.world

    def locate(self, ordinal: int) -> tuple[int, int]:
        """Epoch, and place in its piece, of the process's sample of this number."""
        # In as many epochs as there are processes each has every piece once.
        rounds, rest = divmod(ordinal, self.total)
        epoch = rounds * self.world
        while True:
            start, end = self.piece(epoch)
            if rest < end - start:
                return epoch, rest
            rest -= end - start
            epoch += 1

    def runs(self, epoch: int) -> list[Run]:
        """What is read, in this order."""
        start, end = self.piece(epoch)
        found, before = [], 0
        for shard in permutation(self.seed, epoch, len(self.counts)):
            first, last = max(start - before, 0), min(end - before, self.counts[shard])
            if first < last:
                found.append(Run(int(shard), first, last))
            before += self.counts[shard]
        return found

    def numbers(self, epoch: int) -> list[int]:
        """The samples' numbers in the data set, in the order in which they are given."""
        runs = [np.arange(run.first, run.last) + self.starts[run.shard] for run in self.runs(epoch)]
        read: list[int] = np.concatenate(runs).tolist()
        random = generator(self.seed, 0, (self.rank + 1) << 32 | epoch)
        given, buffer = [], read[: self.shuffle]
        for number, draw in zip(read[self.shuffle :], random.random(len(read)), strict=False):
            place = int(draw * self.shuffle)
            given.append(buffer[place])
            buffer[place] = number
        return given + [buffer[place] for place in random.permutation(len(buffer))]
