"""Which sample stands where: a pure function of (seed, epoch, position) and the manifest.

An epoch goes through the shards in an order drawn anew. Laid end to end, their samples are cut
into `num_streams` canonical streams of equal length; each stream is shuffled within a window that
slides along it, and a global batch takes equally from every stream, stream by stream. W workers
share the streams between them. So neither the number of workers nor that of their loader processes
changes a global batch, reading stays sequential, and each batch reads about as much as it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lotlip.data.manifest import Manifest
from lotlip.errors import ConfigError

_SHARDS, _SHUFFLE, _SAMPLE = range(3)  # what a random generator is drawn for


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """The order of the samples."""

    num_streams: int = 16
    """Canonical streams an epoch is cut into; the numbers of workers that can train are its
    divisors. More streams mix more shards into a batch."""
    shuffle_window: int = 1024
    """A sample of a stream comes at most so many places before or behind where it lies; a worker
    holds about half as many undecoded samples in memory for each of its streams."""

    def __post_init__(self) -> None:
        for name in ("num_streams", "shuffle_window"):
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

    def num_rounds(self) -> int:
        """Into how many rounds the shuffled order of a stream falls, see `round`."""
        return -(-self.stream_length // self.config.shuffle_window) + 1

    def round(self, stream: int, index: int) -> tuple[int, np.ndarray]:
        """Round `index` of a stream's shuffled order: its first place, and its samples in order.

        Samples are numbered as the stream reads them. Sample n gets the key n + window * u, with u
        drawn from [0, 1), and the keys' order is that of the stream: so no sample is given out
        more than a window before or behind where it lies. A round is the keys in
        [index * window, (index + 1) * window). It is made of two windows' samples only.
        """
        before, now = self._keys(stream, index - 1), self._keys(stream, index)
        start, end = index * self.config.shuffle_window, (index + 1) * self.config.shuffle_window
        earlier = max(0, start - self.config.shuffle_window)
        first = min(earlier, self.stream_length) + int(np.count_nonzero(before < start))
        numbers = np.arange(earlier, earlier + len(before) + len(now))
        keys = np.concatenate([before, now])
        inside = (keys >= start) & (keys < end)
        return first, numbers[inside][np.argsort(keys[inside], kind="stable")]

    def round_of(self, stream: int, place: int) -> int:
        """The round in which a place of the stream lies."""
        index = place // self.config.shuffle_window
        return index if place < self.round(stream, index + 1)[0] else index + 1

    def at(self, stream: int, place: int) -> int:
        """The number of the sample at a place of the shuffled stream."""
        first, numbers = self.round(stream, self.round_of(stream, place))
        return int(numbers[place - first])

    def _keys(self, stream: int, index: int) -> np.ndarray:
        """The keys of the samples in window `index`; the last window may be cut, or empty."""
        window = self.config.shuffle_window
        start = max(0, index * window)
        numbers = np.arange(start, min((index + 1) * window, self.stream_length))
        return numbers + window * self._rng(_SHUFFLE, stream, index + 1).random(len(numbers))

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
