"""From shards to the batches of one worker.

Shape suffixes: B samples of this worker, H and W pixels, C channels, D width of the image tower,
S captions, L tokens.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lotlip.captions import CaptionConfig, Drawn, draw_captions
from lotlip.data.features import read_feature
from lotlip.data.manifest import Manifest
from lotlip.data.order import EpochOrder, OrderConfig
from lotlip.data.prefetch import prefetched
from lotlip.data.sample import FEATURE_SUFFIX, from_members
from lotlip.data.shards import DamagedShardError, RawSample, read_shard
from lotlip.data.store import Store
from lotlip.errors import ConfigError, DataError
from lotlip.images import AugmentConfig, random_crop
from lotlip.tokenizer import Tokenizer

_PREFETCHED_BATCHES = 4
_MOST_SUBSTITUTES = 64  # tried for one bad sample


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training reads, and how."""

    train: str
    """The data set to train on: a folder or s3://BUCKET/PREFIX with a manifest.json."""
    order: OrderConfig = field(default_factory=OrderConfig)
    """How samples are mixed."""
    num_loader_processes: int = 0
    """Processes that decode for each worker; 0 decodes in a thread of the worker itself."""
    features: str = ""
    """Where features of the locked image tower are kept: a folder or s3://BUCKET/PREFIX. They
    are computed once for a tower and data set; from then on training reads them, not pixels.
    Empty: training reads pixels."""
    max_bad_fraction: float = 0.001
    """Share of an epoch's samples that may be unreadable before the run stops. Each one is
    recorded, and its place is taken by another sample of the epoch."""

    def __post_init__(self) -> None:
        if self.num_loader_processes < 0:
            raise ConfigError(
                f"data.num_loader_processes={self.num_loader_processes} must be 0 or more"
            )
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise ConfigError(f"data.max_bad_fraction={self.max_bad_fraction} must be in [0, 1]")


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used."""

    shard: str
    index: int
    reason: str


class SampleTrace(NamedTuple):
    """What a sample was when it was trained on."""

    key: str
    captions: str
    """Those drawn: `short;llava[2:5]`."""
    content: str
    """Checksum of pixels or features, and tokens."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one worker trains on in one step."""

    images: Tensor
    """Pixels, uint8 [B, H, W, C]; or the locked image tower's features, float32 [B, D]."""
    ids_BSL: Tensor
    """int64"""
    keys: tuple[str, ...]
    bad: tuple[BadSample, ...]
    trace: tuple[SampleTrace, ...] = ()
    """Of each sample, if the source asks for it."""
    store_faults: int = 0
    """That reading met since the batch before, see `Store.num_faults`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """All that determines the batches but the epoch and the worker."""

    store: Store
    manifest: Manifest
    tokenizer: Tokenizer
    captions: CaptionConfig
    augment: AugmentConfig
    order: OrderConfig
    image_size_px: int
    global_batch: int
    seed: int
    trace: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    """The version of each shard, by name, that is to be read; of none, any is."""

    def epoch(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self.manifest,
            self.order,
            seed=self.seed,
            epoch=epoch,
            global_batch=self.global_batch,
        )


def batches(
    source: Source, *, epoch: int, start_step: int, streams: range, num_processes: int = 0
) -> Iterator[Batch]:
    """A worker's batches of an epoch from a step on, read ahead of their use.

    `streams` are those of the worker, see `order.streams_of`. Raises: ConfigError, DataError.
    """
    if num_processes == 0:
        yield from prefetched(
            _read(source, epoch=epoch, start_step=start_step, streams=streams),
            _PREFETCHED_BATCHES,
        )
        return
    # Each process serves some of the streams, so a batch is one part from each of them, in turn.
    num_processes = max(n for n in range(1, num_processes + 1) if len(streams) % n == 0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # or each process of each epoch imports torch anew
    loader = DataLoader(
        _Parts(source, epoch, start_step, streams),
        batch_size=None,
        num_workers=num_processes,
        prefetch_factor=_PREFETCHED_BATCHES,
        multiprocessing_context=context,
    )
    parts = iter(loader)
    try:
        while group := list(islice(parts, num_processes)):
            yield _joined([_raised(part) for part in group])
    finally:
        del parts  # stops the processes now; an error's traceback would keep them


class _Parts(IterableDataset["Batch | DataError"]):
    """The share of a loader process in each batch of its worker; last an error, if there is one.

    The error is handed over as it is: raised here, the loader would wrap it in a traceback.
    """

    def __init__(self, source: Source, epoch: int, start_step: int, streams: range) -> None:
        self.arguments = source, epoch, start_step, streams

    def __iter__(self) -> Iterator[Batch | DataError]:
        source, epoch, start_step, streams = self.arguments
        info = get_worker_info()
        assert info is not None, "only loader processes iterate"
        each = len(streams) // info.num_workers
        mine = streams[info.id * each : (info.id + 1) * each]
        try:
            yield from _read(source, epoch=epoch, start_step=start_step, streams=mine)
        except DataError as error:
            yield error


def _raised(part: Batch | DataError) -> Batch:
    if isinstance(part, DataError):
        raise part
    return part


def _read(source: Source, *, epoch: int, start_step: int, streams: range) -> Iterator[Batch]:
    order = source.epoch(epoch)
    start = start_step * order.batch_per_stream
    readers = [_prepared(source, order, stream, start) for stream in streams]
    faults = source.store.num_faults
    for _ in range(start_step, order.steps):
        taken = [item for reader in readers for item in islice(reader, order.batch_per_stream)]
        before, faults = faults, source.store.num_faults
        yield replace(_collated(source, taken), store_faults=faults - before)


@dataclass(frozen=True)
class _Prepared:
    image: np.ndarray
    captions: Sequence[Drawn]
    key: str
    bad: tuple[BadSample, ...]


def _prepared(source: Source, order: EpochOrder, stream: int, start: int) -> Iterator[_Prepared]:
    """The samples of a stream from its place `start` on, decoded, with drawn captions."""
    for place, read in _shuffled(source, order, stream, start):
        rng = order.sample_rng(order.position(stream, place))
        try:
            yield _prepare(source, read, rng)
        except DataError as error:
            bad = BadSample(read.shard, read.index, str(error))
            yield _substitute(source, order, stream, place, bad)


def _shuffled(
    source: Source, order: EpochOrder, stream: int, start: int
) -> Iterator[tuple[int, _Read]]:
    """The places of a stream from `start` on with their samples, read in the order of the tars."""
    begin = order.round_of(stream, start)
    given_out: set[int] = set(order.round(stream, begin - 1)[1]) if begin else set()
    first, numbers = order.round(stream, begin)
    given_out |= set(numbers[: start - first])
    _, later = order.round(stream, begin + 1)
    number = int(min([*numbers[start - first :], *later]))
    reading = _from(source, order, stream, number)
    held: dict[int, _Read] = {}
    for index in range(begin, order.num_rounds()):
        first, numbers = order.round(stream, index)
        for place in range(max(first, start), first + len(numbers)):
            wanted = int(numbers[place - first])
            while number <= wanted:
                held[number] = next(reading)
                if number in given_out:
                    del held[number]
                number += 1
            yield place, held.pop(wanted)


def _from(source: Source, order: EpochOrder, stream: int, number: int) -> Iterator[_Read]:
    """The samples of a stream as they lie, from one of them on."""
    begin = stream * order.stream_length
    for span in order.spans(begin + number, begin + order.stream_length):
        shard = source.manifest.shards[span.shard]
        places = range(span.start, span.stop)
        tag = source.tags.get(shard.name, "")
        raw = read_shard(source.store, shard, start=span.start, tag=tag)
        for index, members in zip(places, raw, strict=False):
            yield _Read(shard.name, index, members)


def _substitute(
    source: Source, order: EpochOrder, stream: int, place: int, bad: BadSample
) -> _Prepared:
    """What takes the place of a bad sample: a good one from half an epoch away.

    It is read for this alone, which takes a moment; the rule doesn't depend on who reads, or when.
    """
    rng = order.sample_rng(order.position(stream, place))
    num_streams, length = order.config.num_streams, order.stream_length
    for k in range(1, min(_MOST_SUBSTITUTES, num_streams * length) + 1):
        other = (stream + k) % num_streams
        there = (place + length // 2 + k // num_streams) % length
        if (other, there) == (stream, place):
            continue
        read = next(_from(source, order, other, order.at(other, there)))
        try:
            good = _prepare(source, read, rng)
        except DataError:
            continue  # recorded where it has its own place
        return replace(good, bad=(bad,))
    raise DataError(
        f"{bad.shard}[{bad.index}]: {bad.reason}; nor could any of the samples tried take its place"
    )


def _prepare(source: Source, read: _Read, rng: np.random.Generator) -> _Prepared:
    if isinstance(read.raw, DamagedShardError):
        raise DataError(str(read.raw))  # anew: a stored error would gather tracebacks
    sample = from_members(read.raw)
    if sample.image_suffix == FEATURE_SUFFIX:
        image = read_feature(sample.image)
    else:
        image = random_crop(sample.image, source.image_size_px, source.augment, rng)
    return _Prepared(image, draw_captions(sample, source.captions, rng), sample.key, ())


@dataclass(frozen=True)
class _Read:
    shard: str
    index: int
    raw: RawSample | DamagedShardError


def _collated(source: Source, prepared: list[_Prepared]) -> Batch:
    captions = [drawn.caption for item in prepared for drawn in item.captions]
    ids_BSL = source.tokenizer(captions).reshape(len(prepared), source.captions.num_captions, -1)
    traces = map(_traced, prepared, ids_BSL) if source.trace else ()
    return Batch(
        images=torch.from_numpy(np.stack([item.image for item in prepared])),
        ids_BSL=torch.from_numpy(ids_BSL),
        keys=tuple(item.key for item in prepared),
        bad=tuple(bad for item in prepared for bad in item.bad),
        trace=tuple(traces),
    )


def _traced(item: _Prepared, ids_SL: np.ndarray) -> SampleTrace:
    checksum = zlib.crc32(item.image.data)
    for ids_L in ids_SL:
        checksum = zlib.crc32(ids_L[ids_L != 0].tobytes(), checksum)  # the padding is the batch's
    picks = ";".join(drawn.pick for drawn in item.captions)
    return SampleTrace(item.key, picks, f"{checksum:08x}")


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    length = max(part.ids_BSL.shape[2] for part in parts)
    padded = [
        torch.nn.functional.pad(part.ids_BSL, (0, length - part.ids_BSL.shape[2])) for part in parts
    ]
    return Batch(
        images=torch.cat([part.images for part in parts]),
        ids_BSL=torch.cat(padded),
        keys=tuple(key for part in parts for key in part.keys),
        bad=tuple(bad for part in parts for bad in part.bad),
        trace=tuple(sample for part in parts for sample in part.trace),
        store_faults=sum(part.store_faults for part in parts),
    )
