from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

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
    shuffle_window: int = 8
    batch_per_stream: int = 3
    seed: int = 7
    epoch: int = 2

    def order(self) -> EpochOrder:
        return EpochOrder(
            manifest_of(*self.counts),
            OrderConfig(num_streams=self.num_streams, shuffle_window=self.shuffle_window),
            seed=self.seed,
            epoch=self.epoch,
            global_batch=self.batch_per_stream * self.num_streams,
        )


def stream_of(order: EpochOrder, stream: int) -> list[Place]:
    """The samples of a stream in the order in which it gives them out."""
    begin = stream * order.stream_length
    lying = [
        (span.shard, place)
        for span in order.spans(begin, begin + order.stream_length)
        for place in range(span.start, span.stop)
    ]
    given_out: list[Place] = []
    for index in range(order.num_rounds()):
        first, numbers = order.round(stream, index)
        assert first == len(given_out)
        given_out += [lying[number] for number in numbers]
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
        own = laid[stream * length : (stream + 1) * length]
        window, keys = case.shuffle_window, []
        for number in range(length):
            drawn = rng(1, stream, number // window + 1).random(window)
            keys.append(number + window * drawn[number % window])
        streams.append([own[k] for k in np.argsort(keys, kind="stable")])
    each = case.batch_per_stream
    epoch = chain.from_iterable(
        stream[step * each : (step + 1) * each] for step in range(steps) for stream in streams
    )
    return dict(enumerate(epoch))


cases = st.builds(
    Case,
    counts=st.lists(st.integers(0, 23), min_size=1, max_size=9).map(tuple),
    num_streams=st.integers(1, 6),
    shuffle_window=st.integers(1, 20),
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
    backwards = [order.round(2, index) for index in reversed(range(order.num_rounds()))]
    for (first, numbers), index in zip(reversed(backwards), range(99), strict=False):
        assert first == BIG.order().round(2, index)[0]
        assert numbers.tolist() == BIG.order().round(2, index)[1].tolist()


@settings(max_examples=100, deadline=None)
@given(case=cases, data=st.data())
def test_the_sample_at_a_place_is_found_without_those_before_it(
    case: Case, data: st.DataObject
) -> None:
    assume(sum(case.counts) >= case.num_streams * case.batch_per_stream)
    order = case.order()
    stream = data.draw(st.integers(0, case.num_streams - 1))
    place = data.draw(st.integers(0, order.stream_length - 1))
    begin = stream * order.stream_length + order.at(stream, place)
    (span,) = [s for s in order.spans(begin, begin + 1) if s.stop > s.start]
    assert (span.shard, span.start) == stream_of(order, stream)[place]


def test_no_sample_strays_further_than_the_window() -> None:
    order = Case(counts=(4000,), num_streams=1, shuffle_window=100, batch_per_stream=8).order()
    numbers = np.concatenate([order.round(0, index)[1] for index in range(order.num_rounds())])
    strayed = numbers - np.arange(4000)
    assert np.abs(strayed).max() < 100
    assert np.abs(strayed).mean() == pytest.approx(100 / 4, rel=0.1)


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


@pytest.mark.parametrize("shuffle_window", [2, 9, 1000])
def test_what_is_drawn_does_not_depend_on_the_window(shuffle_window: int) -> None:
    other = Case(**{**vars(BIG), "shuffle_window": shuffle_window})
    assert other.order().sample_rng(11).random() == BIG.order().sample_rng(11).random()
    assert other.order().steps == BIG.order().steps


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


@pytest.mark.parametrize("name", ["num_streams", "shuffle_window"])
def test_streams_and_window_are_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.order.{name}=0 must be 1 or more"):
        OrderConfig(**{name: 0})
