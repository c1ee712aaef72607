from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lotlip.data.manifest import Manifest, Shard
from lotlip.data.order import EpochOrder, OrderConfig, Span, streams_of
from lotlip.errors import ConfigError

Place = tuple[int, int]
"""A sample: its shard's index and its own index in that shard."""


def manifest_of(*counts: int) -> Manifest:
    return Manifest(
        shards=tuple(
            Shard(name=f"{place}.tar", num_samples=count, num_bytes=0, sha256="")
            for place, count in enumerate(counts)
        )
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    counts: tuple[int, ...]
    num_streams: int = 4
    shuffle_block: int = 8
    batch_per_stream: int = 3
    seed: int = 7
    epoch: int = 2

    def order(self) -> EpochOrder:
        return EpochOrder(
            manifest_of(*self.counts),
            OrderConfig(num_streams=self.num_streams, shuffle_block=self.shuffle_block),
            seed=self.seed,
            epoch=self.epoch,
            global_batch=self.batch_per_stream * self.num_streams,
        )


def stream_of(order: EpochOrder, stream: int) -> list[Place]:
    """The samples of a stream in the order in which it gives them out."""
    given_out: list[Place] = []
    for index in range(order.num_blocks()):
        spans, permutation = order.block(stream, index)
        read = [(span.shard, place) for span in spans for place in range(span.start, span.stop)]
        assert sorted(permutation) == list(range(len(read)))
        given_out += [read[place] for place in permutation]
    return given_out


def positions(case: Case) -> dict[int, Place]:
    """The sample at each position of the epoch."""
    order, found = case.order(), {}
    for stream in range(case.num_streams):
        for place, sample in enumerate(stream_of(order, stream)):
            position = order.position(stream, place)
            assert position not in found, "two samples at one position"
            found[position] = sample
    return found


def reference(case: Case) -> dict[int, Place]:
    """The same from the definition, with the whole epoch in one list."""

    def rng(*purpose: int) -> np.random.Generator:
        return np.random.default_rng([case.seed, case.epoch, *purpose])

    laid = [
        (int(shard), place)
        for shard in rng(0).permutation(len(case.counts))
        for place in range(case.counts[shard])
    ]
    steps = len(laid) // case.num_streams // case.batch_per_stream
    length = steps * case.batch_per_stream
    streams: list[list[Place]] = []
    for stream in range(case.num_streams):
        own, shuffled = laid[stream * length : (stream + 1) * length], []
        num_blocks = -(-length // case.shuffle_block)
        for index in range(num_blocks):
            block = own[index * length // num_blocks : (index + 1) * length // num_blocks]
            shuffled += [block[k] for k in rng(1, stream, index).permutation(len(block))]
        streams.append(shuffled)
    each = case.batch_per_stream
    epoch = chain.from_iterable(
        stream[step * each : (step + 1) * each] for step in range(steps) for stream in streams
    )
    return dict(enumerate(epoch))


cases = st.builds(
    Case,
    counts=st.lists(st.integers(0, 23), min_size=1, max_size=9).map(tuple),
    num_streams=st.integers(1, 6),
    shuffle_block=st.integers(1, 20),
    batch_per_stream=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)


@settings(max_examples=200, deadline=None)
@given(case=cases)
def test_the_order_is_that_of_the_definition(case: Case) -> None:
    assume(sum(case.counts) >= case.num_streams * case.batch_per_stream)
    found = positions(case)
    assert found == reference(case)
    order = case.order()
    used = order.steps * case.num_streams * case.batch_per_stream
    assert sorted(found) == list(range(used))
    assert len(set(found.values())) == used, "a sample appears twice"
    left_out = sum(case.counts) - used  # less than a batch, and what doesn't fill a stream
    assert 0 <= left_out < case.num_streams * case.batch_per_stream + case.num_streams


BIG = Case(counts=(40, 3, 25, 1, 60, 31))


def test_an_epoch_uses_every_sample_that_fills_a_batch() -> None:
    order = BIG.order()
    assert order.steps == 160 // 12
    assert len(set(positions(BIG).values())) == 13 * 12


def test_the_order_is_the_same_whenever_it_is_asked_for() -> None:
    assert positions(BIG) == positions(BIG)
    order = BIG.order()
    backwards = [order.block(2, index) for index in reversed(range(order.num_blocks()))]
    for (spans, permutation), index in zip(reversed(backwards), range(99), strict=False):
        assert spans == BIG.order().block(2, index)[0]
        assert permutation.tolist() == BIG.order().block(2, index)[1].tolist()


@pytest.mark.parametrize("change", [{"seed": 8}, {"epoch": 3}])
def test_epochs_and_seeds_differ_in_their_order_of_shards_and_samples(
    change: dict[str, int],
) -> None:
    other = Case(**{**vars(BIG), **change})
    here, there = positions(BIG), positions(other)
    assert sum(here[k] == there[k] for k in here) < len(here) / 4
    assert list(BIG.order().spans(0, 160)) != list(other.order().spans(0, 160))
    one_shard = Case(counts=(60,)), Case(**{**vars(Case(counts=(60,))), **change})
    assert stream_of(one_shard[0].order(), 0) != stream_of(one_shard[1].order(), 0)


def test_the_samples_that_one_epoch_leaves_out_come_in_another() -> None:
    every = {(shard, place) for shard, n in enumerate(BIG.counts) for place in range(n)}
    seen = [set(positions(Case(**{**vars(BIG), "epoch": e})).values()) for e in range(8)]
    assert all(len(every - epoch) == 4 for epoch in seen)
    assert set().union(*seen) == every


def test_what_is_drawn_for_a_sample_depends_on_seed_epoch_and_position() -> None:
    def draw(case: Case, position: int) -> float:
        return float(case.order().sample_rng(position).random())

    draws = {
        draw(Case(**{**vars(BIG), **change}), position)
        for change in ({}, {"seed": 8}, {"epoch": 3})
        for position in range(100)
    }
    assert len(draws) == 300
    assert draw(BIG, 5) == draw(BIG, 5)


@pytest.mark.parametrize("shuffle_block", [2, 9, 1000])
def test_what_is_drawn_does_not_depend_on_the_blocks(shuffle_block: int) -> None:
    other = Case(**{**vars(BIG), "shuffle_block": shuffle_block})
    assert other.order().sample_rng(11).random() == BIG.order().sample_rng(11).random()
    assert other.order().steps == BIG.order().steps


def test_no_block_of_a_stream_is_much_shorter_than_the_others() -> None:
    order = Case(counts=(40, 3, 25, 1, 67)).order()  # 33 samples a stream, in blocks of 8
    assert order.stream_length == 33
    assert order.num_blocks() == 5
    assert [len(order.block(3, index)[1]) for index in range(5)] == [6, 7, 6, 7, 7]
    assert [order.places(index) for index in (0, 1, 4)] == [range(6), range(6, 13), range(26, 33)]


def test_spans_cross_shards_and_skip_empty_ones() -> None:
    order = Case(counts=(5, 0, 4), num_streams=1, batch_per_stream=1).order()
    whole = list(order.spans(0, 9))
    assert sorted(s.stop - s.start for s in whole if s.stop > s.start) == [4, 5]
    first, last = [span for span in whole if span.stop > span.start]
    num_first = first.stop
    assert list(order.spans(0, 1)) == [Span(first.shard, 0, 1)]
    assert list(order.spans(num_first - 1, num_first)) == [
        Span(first.shard, num_first - 1, num_first)
    ]
    assert next(order.spans(num_first, 9)) == Span(last.shard, 0, last.stop)
    crossing = [s for s in order.spans(num_first - 1, num_first + 2) if s.stop > s.start]
    assert crossing == [Span(first.shard, num_first - 1, num_first), Span(last.shard, 0, 2)]


def test_blocks_read_each_stream_forwards_without_gaps() -> None:
    order = BIG.order()
    for stream in range(4):
        spans = [s for index in range(order.num_blocks()) for s in order.block(stream, index)[0]]
        for before, after in pairwise(spans):
            same = before.shard == after.shard and before.stop == after.start
            assert same or (after.start == 0 and before.stop == BIG.counts[before.shard])


@pytest.mark.parametrize(("num_workers", "each"), [(1, 12), (2, 6), (3, 4), (6, 2), (12, 1)])
def test_workers_share_the_streams_in_the_order_of_their_ranks(num_workers: int, each: int) -> None:
    shares = [streams_of(rank, num_workers, 12) for rank in range(num_workers)]
    assert [len(share) for share in shares] == [each] * num_workers
    assert list(chain.from_iterable(shares)) == list(range(12))


@pytest.mark.parametrize("num_workers", [5, 8, 24])
def test_a_number_of_workers_that_does_not_fit_is_refused_with_those_that_do(
    num_workers: int,
) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"cluster.num_workers={num_workers} must divide data.order.num_streams=12: "
        r"use one of 1, 2, 3, 4, 6, 12, or",
    ):
        streams_of(0, num_workers, 12)


def test_a_batch_that_streams_cannot_share_is_refused() -> None:
    config = OrderConfig(num_streams=8)
    with pytest.raises(ConfigError, match=r"train.global_batch=12 must be a multiple of .*=8"):
        EpochOrder(manifest_of(100), config, seed=0, epoch=0, global_batch=12)


def test_a_batch_larger_than_the_data_set_is_refused() -> None:
    config = OrderConfig(num_streams=4)
    EpochOrder(manifest_of(10, 6), config, seed=0, epoch=0, global_batch=16)
    with pytest.raises(ConfigError, match=r"train.global_batch=16 is more than .* 15 samples in 4"):
        EpochOrder(manifest_of(10, 5), config, seed=0, epoch=0, global_batch=16)


@pytest.mark.parametrize("name", ["num_streams", "shuffle_block"])
def test_streams_and_blocks_are_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.order.{name}=0 must be 1 or more"):
        OrderConfig(**{name: 0})
