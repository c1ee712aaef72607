from __future__ import annotations

import io
import itertools
import re
import shutil
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from lotlip.captions import CaptionConfig, draw_captions
from lotlip.data.manifest import read_manifest
from lotlip.data.order import OrderConfig, streams_of
from lotlip.data.pipeline import Batch, DataConfig, Source, batches
from lotlip.data.prefetch import prefetched
from lotlip.data.sample import Sample
from lotlip.data.shards import CaptionCount, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.images import AugmentConfig, random_crop
from lotlip.tokenizer import Tokenizer

NUM_STREAMS, GLOBAL_BATCH, NUM_STEPS = 4, 24, 12  # 300 samples, of which an epoch uses 288


def source_of(store: FolderStore, tokenizer: Tokenizer, **fields: object) -> Source:
    values = {
        "captions": CaptionConfig(sentences_per_sub_caption=2, num_sub_captions=2),
        "augment": AugmentConfig(min_crop_area=0.5, flip=True),
        "order": OrderConfig(num_streams=NUM_STREAMS, shuffle_window=16),
        "image_size_px": 32,
        "global_batch": GLOBAL_BATCH,
        "seed": 3,
        "trace": True,
    }
    return Source(
        store=store,
        manifest=read_manifest(store),
        tokenizer=tokenizer,
        **{**values, **fields},  # type: ignore[arg-type]
    )


@pytest.fixture
def source(scene_store: FolderStore, scene_tokenizer: Tokenizer) -> Source:
    return source_of(scene_store, scene_tokenizer)


@pytest.fixture
def damaged(scene_store: FolderStore, scene_tokenizer: Tokenizer, tmp_path: Path) -> Source:
    """A copy of the data set, for a test to damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(scene_store.root, folder)
    return source_of(FolderStore(folder), scene_tokenizer)


def global_batches(
    source: Source,
    *,
    num_workers: int = 1,
    epoch: int = 0,
    start_step: int = 0,
    num_processes: int = 0,
) -> list[Batch]:
    """The batches of all workers, joined in the order of their ranks."""
    shares = [
        list(
            batches(
                source,
                epoch=epoch,
                start_step=start_step,
                streams=streams_of(rank, num_workers, source.order.num_streams),
                num_processes=num_processes,
            )
        )
        for rank in range(num_workers)
    ]
    return [_joined(parts) for parts in zip(*shares, strict=True)]


def _joined(parts: tuple[Batch, ...]) -> Batch:
    rows = [row for part in parts for row in part.ids_BSL.transpose(0, 2).unbind(2)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(
        images=torch.cat([part.images for part in parts]),
        ids_BSL=padded.transpose(1, 2),
        keys=tuple(key for part in parts for key in part.keys),
        bad=tuple(bad for part in parts for bad in part.bad),
        trace=tuple(sample for part in parts for sample in part.trace),
    )


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.trace == theirs.trace
        assert [(b.shard, b.index) for b in ours.bad] == [(b.shard, b.index) for b in theirs.bad]
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.ids_BSL, theirs.ids_BSL)


def places_of(source: Source, epoch: int = 0) -> dict[tuple[str, int], int]:
    """The stream of each (shard, index) that an epoch reads."""
    order, found = source.epoch(epoch), {}
    for stream in range(NUM_STREAMS):
        begin = stream * order.stream_length
        for span in order.spans(begin, begin + order.stream_length):
            name = source.manifest.shards[span.shard].name
            found |= {(name, index): stream for index in range(span.start, span.stop)}
    return found


def keys_of(source: Source) -> dict[tuple[str, int], str]:
    """The key of each (shard, index): the scenes are numbered through."""
    numbers = itertools.count()
    return {
        (shard.name, index): f"{next(numbers):08d}"
        for shard in source.manifest.shards
        for index in range(shard.num_samples)
    }


def overwrite(source: Source, shard: str, member: str, old: bytes, new: bytes) -> None:
    """Change the content of a member in its place; the tar stays sound."""
    assert isinstance(source.store, FolderStore)
    path = source.store.root / shard
    content = bytearray(path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        info = tar.getmember(member)
    where = content.index(old, info.offset_data, info.offset_data + info.size)
    content[where : where + len(old)] = new.ljust(len(old))
    path.write_bytes(content)


def zero_header(source: Source, shard: str, member: str) -> None:
    """Tear a shard at a member, keeping its size."""
    assert isinstance(source.store, FolderStore)
    path = source.store.root / shard
    content = bytearray(path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        offset = tar.getmember(member).offset
    content[offset : offset + 16] = bytes(16)
    path.write_bytes(content)


def assert_balanced(source: Source, found: list[Batch], bad: set[tuple[str, int]]) -> None:
    """Every sample that the epoch reads is used, or recorded once and replaced."""
    places, keys = places_of(source), keys_of(source)
    recorded = Counter((b.shard, b.index) for batch in found for b in batch.bad)
    assert recorded == Counter(place for place in places if place in bad)
    assert all(len(batch.keys) == len(batch.images) == GLOBAL_BATCH for batch in found)
    used = Counter(key for batch in found for key in batch.keys)
    good = {keys[place] for place in places if place not in bad}
    assert set(used) == good
    assert used.total() == len(places) == NUM_STEPS * GLOBAL_BATCH
    replacements = used - Counter(good)
    assert replacements.total() == recorded.total()


def test_a_batch_is_what_seed_epoch_and_position_say(
    source: Source, scene_samples: list[Sample]
) -> None:
    order, position = source.epoch(1), 0
    laid = [s for span in order.spans(0, 300) for s in _samples_of(source, scene_samples, span)]
    per_stream = GLOBAL_BATCH // NUM_STREAMS
    for step, batch in enumerate(global_batches(source, epoch=1)):
        for row in range(GLOBAL_BATCH):
            stream, place = row // per_stream, step * per_stream + row % per_stream
            number = order.at(stream, place)
            sample = laid[stream * 72 + number]
            rng = np.random.default_rng([3, 1, 2, position])
            pixels = random_crop(sample.image, 32, source.augment, rng)
            drawn = draw_captions(sample, source.captions, rng)
            ids = source.tokenizer([one.caption for one in drawn])
            assert batch.keys[row] == sample.key
            assert np.array_equal(batch.images[row].numpy(), pixels)
            assert np.array_equal(batch.ids_BSL[row, :, : ids.shape[1]].numpy(), ids)
            assert not batch.ids_BSL[row, :, ids.shape[1] :].any()
            position += 1
    assert position == 288


def _samples_of(source: Source, samples: list[Sample], span: object) -> list[Sample]:
    first = sum(s.num_samples for s in source.manifest.shards[: span.shard])  # type: ignore[attr-defined]
    return samples[first + span.start : first + span.stop]  # type: ignore[attr-defined]


def test_the_short_caption_has_the_ids_that_an_evaluation_gives_it(
    scene_samples: list[Sample], scene_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    short = "A red castle. A white bird."
    store = FolderStore(tmp_path)
    samples = [replace(sample, short=short) for sample in scene_samples[:GLOBAL_BATCH]]
    write_dataset(store, [(write_shard(store, "shard-000000.tar", samples), CaptionCount())], {})
    (batch,) = global_batches(source_of(store, scene_tokenizer))
    expected = scene_tokenizer([short])[0]
    assert list(expected).count(scene_tokenizer.sep_id) == 2
    assert np.array_equal(batch.ids_BSL[0, 0, : len(expected)].numpy(), expected)


def test_a_trace_names_what_each_sample_was(source: Source) -> None:
    (first, *_), (other, *_) = global_batches(source), global_batches(replace(source, seed=4))
    assert tuple(sample.key for sample in first.trace) == first.keys
    assert re.fullmatch(r"short(;scenes\[\d+:\d+\]){2}", first.trace[0].captions)
    contents = {sample.content for sample in (*first.trace, *other.trace)}
    assert len(contents) == 2 * GLOBAL_BATCH
    without = next(batches(replace(source, trace=False), epoch=0, start_step=0, streams=range(4)))
    assert without.trace == ()


def test_an_epoch_gives_whole_batches_of_every_sample_that_it_reads(source: Source) -> None:
    found = global_batches(source)
    assert len(found) == NUM_STEPS
    assert found[0].images.shape == (GLOBAL_BATCH, 32, 32, 3)
    assert found[0].images.dtype == torch.uint8
    assert found[0].ids_BSL.shape[:2] == (GLOBAL_BATCH, 3)
    assert found[0].ids_BSL.dtype == torch.int64
    assert_balanced(source, found, set())


def test_epochs_and_seeds_differ(source: Source) -> None:
    first = global_batches(source)[0]
    assert set(first.keys) != set(global_batches(source, epoch=1)[0].keys)
    assert set(first.keys) != set(global_batches(replace(source, seed=4))[0].keys)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_number_of_workers_does_not_change_a_global_batch(
    source: Source, num_workers: int
) -> None:
    assert_same(global_batches(source, num_workers=num_workers), global_batches(source))


@pytest.mark.parametrize("start_step", [0, 1, 5, 8, 11, 12])
def test_a_restart_continues_where_it_stopped(damaged: Source, start_step: int) -> None:
    for number in (8, 100, 130, 210, 290):
        place = next(p for p, key in keys_of(damaged).items() if key == f"{number:08d}")
        overwrite(damaged, place[0], f"{number:08d}.jpg", b"\xff\xd8\xff", b"no!")
    whole = global_batches(damaged)
    assert sum(len(batch.bad) for batch in whole) >= 4
    assert_same(global_batches(damaged, start_step=start_step), whole[start_step:])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loader_processes_change_nothing_and_hand_over_errors_in_one_line(damaged: Source) -> None:
    overwrite(damaged, "shard-000004.tar", "00000130.jpg", b"\xff\xd8\xff", b"no!")
    here = global_batches(damaged)
    assert sum(len(batch.bad) for batch in here) == 1
    assert_same(global_batches(damaged, num_processes=1), here)
    assert_same(global_batches(damaged, num_processes=3, start_step=4), here[4:])
    (Path(damaged.store.uri) / "shard-000005.tar").unlink()
    with pytest.raises(DataError) as caught:
        global_batches(damaged, num_processes=2)
    assert str(caught.value) == f"{damaged.store.uri}/shard-000005.tar does not exist"


@pytest.mark.parametrize(
    ("suffix", "old", "new", "reason"),
    [
        ("jpg", b"\xff\xd8\xff", b"no!", "image does not decode"),
        ("json", b"{", b"?", "sample 00000080: its json does not parse"),
        ("json", b'"short"', b'"shirt"', "sample 00000080: its json has no text 'short'"),
        ("json", b'"scenes"', b'"scents"', "sample 00000080: no long caption by scenes"),
    ],
)
def test_a_bad_sample_is_recorded_once_and_replaced(
    damaged: Source, suffix: str, old: bytes, new: bytes, reason: str
) -> None:
    damaged = replace(damaged, captions=CaptionConfig(captioners=("scenes",)))
    sound = global_batches(damaged)
    place = ("shard-000002.tar", 9)
    assert place in places_of(damaged)
    overwrite(damaged, place[0], f"00000080.{suffix}", old, new)
    found = global_batches(damaged)
    assert_balanced(damaged, found, {place})
    (bad,) = [bad for batch in found for bad in batch.bad]
    assert bad.reason.startswith(reason)
    assert "\n" not in bad.reason
    for ours, theirs in zip(found, sound, strict=True):
        differing = [k for k in range(GLOBAL_BATCH) if ours.keys[k] != theirs.keys[k]]
        assert [theirs.keys[k] for k in differing] == ["00000080"] * len(ours.bad)
        same = [k for k in range(GLOBAL_BATCH) if k not in differing]
        assert torch.equal(ours.images[same], theirs.images[same])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_samples_behind_a_tear_are_recorded_and_replaced(
    damaged: Source, num_workers: int
) -> None:
    # Of shard 4, samples 121..198, the json of 150 is lost as well as all from 151 on.
    zero_header(damaged, "shard-000004.tar", "00000150.json")
    overwrite(damaged, "shard-000004.tar", "00000125.jpg", b"\xff\xd8\xff", b"no!")
    found = global_batches(damaged, num_workers=num_workers)
    torn = {("shard-000004.tar", index) for index in range(150 - 121, 78)}
    assert_balanced(damaged, found, torn | {("shard-000004.tar", 125 - 121)})
    reasons = {bad.reason for batch in found for bad in batch.bad if bad.index > 29}
    torn_text = f"{damaged.store.uri}/shard-000004.tar holds 30 samples, its manifest says 78"
    assert reasons == {torn_text}


def test_a_shard_that_was_written_torn_loses_what_is_not_there(damaged: Source) -> None:
    path = Path(damaged.store.uri) / "shard-000005.tar"
    content = path.read_bytes()[: path.stat().st_size // 2 // 512 * 512]
    path.write_bytes(content)
    shards = [
        replace(shard, num_bytes=len(content)) if shard.name == path.name else shard
        for shard in damaged.manifest.shards
    ]
    damaged = replace(damaged, manifest=replace(damaged.manifest, shards=tuple(shards)))
    found = global_batches(damaged)
    recorded = {(bad.shard, bad.index) for batch in found for bad in batch.bad}
    lost = {(path.name, index) for index in range(min(i for _, i in recorded), 51)}
    assert 20 < len(lost) < 30
    assert_balanced(damaged, found, lost)


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_a_shard_that_is_missing_or_changed_is_an_error(damaged: Source, change: str) -> None:
    path = Path(damaged.store.uri) / "shard-000005.tar"
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"shard-000005.tar (does not exist|has \d+ bytes, exp)"):
        global_batches(damaged)


def test_where_nothing_is_readable_is_an_error(damaged: Source) -> None:
    with pytest.raises(DataError, match=r"no long caption by nobody, .*nor could any of the"):
        global_batches(replace(damaged, captions=CaptionConfig(captioners=("nobody",))))


def test_one_good_sample_is_found_among_bad_ones(damaged: Source) -> None:
    shard = damaged.manifest.shards[0]
    source = replace(
        damaged,
        manifest=replace(damaged.manifest, shards=(shard,)),
        order=OrderConfig(num_streams=1),
        global_batch=10,
    )
    for number in range(60):
        if number != 33:
            overwrite(source, shard.name, f"{number:08d}.json", b"{", b"?")
    found = list(batches(source, epoch=0, start_step=0, streams=range(1)))
    assert {key for batch in found for key in batch.keys} == {"00000033"}
    recorded = [bad.index for batch in found for bad in batch.bad]
    assert sorted(recorded) == [number for number in range(60) if number != 33]


class _CountingStore(FolderStore):
    """A folder that notes which objects were opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []
        self.starts: list[int] = []
        self.files: list[BinaryIO] = []

    def open(self, name: str, *, start: int = 0, **relied_on: Any) -> BinaryIO:
        self.opened.append(name)
        self.starts.append(start)
        self.files.append(super().open(name, start=start, **relied_on))
        return self.files[-1]


def test_a_store_that_fails_while_a_substitute_is_read_says_so(damaged: Source) -> None:
    sound = _CountingStore(Path(damaged.store.uri))
    global_batches(replace(damaged, store=sound))
    allowed = Counter(sound.opened)
    overwrite(damaged, "shard-000002.tar", "00000080.json", b"{", b"?")

    class Failing(FolderStore):
        def open(self, name: str, *, start: int = 0, **relied_on: Any) -> BinaryIO:
            allowed[name] -= 1
            if allowed[name] < 0:
                raise DataError("the store is away")
            return super().open(name, start=start, **relied_on)

    with pytest.raises(DataError, match="the store is away"):
        global_batches(replace(damaged, store=Failing(sound.root)))


def test_a_stream_opens_each_of_its_shards_once_and_closes_them(source: Source) -> None:
    store = _CountingStore(Path(source.store.uri))
    global_batches(replace(source, store=store))
    order = source.epoch(0)
    expected = Counter(
        name
        for stream in range(NUM_STREAMS)
        for name in {
            source.manifest.shards[span.shard].name
            for span in order.spans(
                stream * order.stream_length, (stream + 1) * order.stream_length
            )
        }
    )
    assert Counter(store.opened) == expected
    assert all(file.closed for file in store.files)


def test_a_restart_reads_no_more_than_a_window_of_each_stream(
    scene_tokenizer: Tokenizer, scene_samples: list[Sample], tmp_path: Path
) -> None:
    samples = [replace(scene_samples[k % 300], key=f"{k:06d}") for k in range(3000)]
    store = _CountingStore(tmp_path)
    write_dataset(store, [(write_shard(store, "all.tar", samples), CaptionCount())], {})
    order = OrderConfig(num_streams=2, shuffle_window=100)
    source = source_of(store, scene_tokenizer, order=order)

    def num_read(start_step: int) -> int:
        store.files.clear()
        stream = batches(source, epoch=0, start_step=start_step, streams=range(2))
        next(stream)
        most = sum(file.tell() for file in store.files) - sum(store.starts)
        store.starts.clear()
        stream.close()  # type: ignore[attr-defined]
        return most

    each = (tmp_path / "all.tar").stat().st_size / 3000
    # The window, the way to it from the offset before, and what is read ahead of its use.
    assert num_read(start_step=120) / each < 2 * (100 + 128) + 8 * GLOBAL_BATCH


def test_closing_the_batches_early_leaves_no_thread_and_no_open_file(source: Source) -> None:
    store, before = _CountingStore(Path(source.store.uri)), threading.active_count()
    stream = batches(
        replace(source, store=store), epoch=0, start_step=0, streams=range(NUM_STREAMS)
    )
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert store.files
    assert all(file.closed for file in store.files)


def test_prefetched_items_keep_their_order() -> None:
    assert list(prefetched(range(200), 3)) == list(range(200))
    assert list(prefetched([], 3)) == []
    assert list(prefetched([None, 0], 1)) == [None, 0]


@pytest.mark.parametrize("error", [DataError("torn"), KeyboardInterrupt()])
def test_an_error_comes_after_the_items_before_it(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise error

    seen, before = [], threading.active_count()
    with pytest.raises(type(error)) as caught:
        seen.extend(prefetched(items(), 2))  # keeps what came before the error
    assert seen == list(range(5))
    assert caught.value is error
    assert threading.active_count() == before


def test_a_slow_consumer_has_a_bounded_number_of_items_waiting() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    stream, before = prefetched(items(), 3), threading.active_count()
    for consumed in (1, 2, 3):
        next(stream)
        deadline = time.monotonic() + 5
        while len(made) < consumed + 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)  # time to make more than allowed
        assert len(made) == consumed + 4, "3 in the queue and one in the hand"
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_loader_processes", -1), ("max_bad_fraction", -0.1), ("max_bad_fraction", 1.5)],
)
def test_a_config_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field}={value} must be "):
        DataConfig(train="x", **{field: value})  # type: ignore[arg-type]


def test_items_may_be_closed_by_the_thread_that_makes_them() -> None:
    # As the garbage collector does that happens to run there.
    held, raised = [], []
    closing, closed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        closing.wait(10)
        try:
            held.pop().close()
        except RuntimeError as error:
            raised.append(error)
        closed.set()

    stream = prefetched(items(), 3)
    assert next(stream) == 1
    held.append(stream)
    closing.set()
    assert closed.wait(10)
    assert not raised
