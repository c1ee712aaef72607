"""Which sample stands where: a pure function of (seed, epoch, position) and the manifest.

An epoch goes through the shards in an order drawn anew. Laid end to end, their samples are cut
into `num_streams` canonical streams of equal length; each stream is shuffled within blocks, and a
global batch takes equally from every stream, stream by stream. W workers share the streams
between them. So neither the number of workers nor that of their loader processes changes a global
batch, and reading stays sequential.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lotlip.data.manifest import Manifest
from lotlip.errors import ConfigError

_SHARDS, _BLOCK, _SAMPLE = range(3)  # what a random generator is drawn for


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """The order of the samples."""

    num_streams: int = 8
    """Canonical streams an epoch is cut into; the numbers of workers that can train are its
    divisors. More streams mix more shards into a batch."""
    shuffle_block: int = 1024
    """Most samples of a stream that are shuffled together; a worker holds this many undecoded
    samples in memory for each of its streams."""

    def __post_init__(self) -> None:
        for name in ("num_streams", "shuffle_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.order.{name}={getattr(self, name)} must be 1 or more")


@dataclass(frozen=True)
class Span:
    """Samples start..stop-1 of the shard with this index in the manifest."""

    shard: int
    start: int
    stop: int


class EpochOrder:
    """The order of one epoch."""

    def __init__(
        self, manifest: Manifest, config: OrderConfig, *, seed: int, epoch: int, global_batch: int
    ) -> None:
        """Raises: ConfigError if a global batch can't take equally from every stream."""
        if global_batch % config.num_streams:
            raise ConfigError(
                f"train.global_batch={global_batch} must be a multiple of "
                f"data.order.num_streams={config.num_streams}"
            )
        self.seed, self.epoch, self.config = seed, epoch, config
        self.batch_per_stream = global_batch // config.num_streams
        self.steps = manifest.num_samples // config.num_streams // self.batch_per_stream
        if self.steps == 0:
            raise ConfigError(
                f"train.global_batch={global_batch} is more than the data set has: "
                f"{manifest.num_samples} samples in {config.num_streams} streams"
            )
        self.stream_length = self.steps * self.batch_per_stream
        counts = np.array([shard.num_samples for shard in manifest.shards])
        self._shards = self._rng(_SHARDS).permutation(len(counts))
        self._ends = np.cumsum(counts[self._shards])

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """The shards' parts at start..stop-1 of the shards laid end to end."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        for place in range(first, len(self._ends)):
            end = int(self._ends[place])
            begin = int(self._ends[place - 1]) if place else 0
            if begin >= stop:
                return
            yield Span(int(self._shards[place]), max(start, begin) - begin, min(stop, end) - begin)

    def num_blocks(self) -> int:
        return -(-self.stream_length // self.config.shuffle_block)

    def places(self, index: int) -> range:
        """The places of a stream that block `index` holds.

        Blocks are as even as can be: a bad sample in a short last one might find no replacement.
        """
        num_blocks = self.num_blocks()
        return range(
            index * self.stream_length // num_blocks,
            (index + 1) * self.stream_length // num_blocks,
        )

    def block(self, stream: int, index: int) -> tuple[list[Span], np.ndarray]:
        """What block `index` of a stream reads, and the order in which it gives that out."""
        places, first = self.places(index), stream * self.stream_length
        permutation = self._rng(_BLOCK, stream, index).permutation(len(places))
        return list(self.spans(first + places.start, first + places.stop)), permutation

    def position(self, stream: int, place: int) -> int:
        """The position in the epoch of a stream's sample `place`."""
        step, slot = divmod(place, self.batch_per_stream)
        batch = step * self.config.num_streams * self.batch_per_stream
        return batch + stream * self.batch_per_stream + slot

    def sample_rng(self, position: int) -> np.random.Generator:
        """Draws the captions and the augmentation of the sample at a position of the epoch."""
        return self._rng(_SAMPLE, position)

    def _rng(self, purpose: int, *of: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, purpose, *of])


def streams_of(rank: int, num_workers: int, num_streams: int) -> range:
    """The streams that a worker serves. Raises: ConfigError with the numbers that work."""
    if num_streams % num_workers:
        divisors = [n for n in range(1, num_streams + 1) if num_streams % n == 0]
        raise ConfigError(
            f"cluster.num_workers={num_workers} must divide data.order.num_streams={num_streams}: "
            f"use one of {', '.join(map(str, divisors))}, or other streams"
        )
    each = num_streams // num_workers
    return range(rank * each, (rank + 1) * each)
