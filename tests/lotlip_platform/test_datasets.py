from __future__ import annotations

import itertools
import json
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from lotlip.data.manifest import read_manifest, write_manifest
from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, read_samples, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip_platform.cluster import connected
from lotlip_platform.dataset_checks import check
from lotlip_platform.datasets import FIRST_INDEX, SPLIT_SIZE, make_scenes
from lotlip_platform.storage import ensure_bucket, open_store


def quiet(done: int, total: int) -> None:
    pass


def small(folder: Path, **changes):
    """10 samples in 2 shards, so without Ray."""
    options = {"num_samples": 10, "shard_size": 6, "on_progress": quiet, **changes}
    return make_scenes(str(folder), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def no_ray(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.usefixtures("no_ray")
def test_two_shards_are_made_without_ray_and_hold_the_samples_in_order(tmp_path):
    progress = []
    manifest = small(tmp_path / "d", on_progress=lambda *numbers: progress.append(numbers))
    assert [shard.num_samples for shard in manifest.shards] == [6, 4]
    assert progress == [(6, 10), (10, 10)]
    store = FolderStore(tmp_path / "d")
    assert read_manifest(store) == manifest
    assert list(read_samples(store, manifest)) == [make_sample(0, index) for index in range(10)]
    assert manifest.captions["long.scenes"]["num"] == 10
    assert check(store.uri, quiet).problems == []


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    small(tmp_path / "a", seed=3)
    small(tmp_path / "b", seed=3)
    small(tmp_path / "c", seed=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_splits_share_no_sample_of_make_sample(tmp_path):
    keys = {}
    for split in FIRST_INDEX:
        manifest = small(tmp_path / split, split=split)
        keys[split] = [s.key for s in read_samples(FolderStore(tmp_path / split), manifest)]
    assert [int(keys[split][0]) for split in FIRST_INDEX] == [0, SPLIT_SIZE, 2 * SPLIT_SIZE]
    assert len(set().union(*keys.values())) == 30
    starts = sorted(FIRST_INDEX.values())
    assert all(b - a >= SPLIT_SIZE for a, b in itertools.pairwise(starts))


def test_what_is_there_already_is_not_written_again(tmp_path):
    first = small(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    called = []
    assert small(tmp_path, on_progress=lambda *numbers: called.append(numbers)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert called == []


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"split": "test"}, {"num_samples": 9}, {"shard_size": 5}]
)
def test_another_data_set_is_never_overwritten(tmp_path, change):
    small(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"holds another data set .*seed=0.* choose another"):
        small(tmp_path, **change)
    assert contents(tmp_path) == before


def test_an_interrupted_run_leaves_no_manifest_and_is_written_again(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "a", on_progress=interrupt)
    assert list(contents(tmp_path / "a")) == ["shard-000000.tar"]
    (tmp_path / "a" / "shard-000000.tar").write_bytes(b"half")
    small(tmp_path / "a")
    small(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 0},
        {"num_samples": SPLIT_SIZE + 1},
        {"shard_size": 0},
        {"seed": -1},
        {"split": "dev"},
    ],
)
def test_impossible_arguments_are_named(tmp_path, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}="):
        small(tmp_path / "d", **change)
    assert not (tmp_path / "d").exists()


def test_a_store_in_s3_gets_the_bytes_that_a_folder_gets(s3_env, tmp_path):
    uri = f"s3://b{uuid.uuid4().hex}/scenes"
    with pytest.raises(DataError, match="does not exist"):
        make_scenes(uri, num_samples=10, shard_size=6, on_progress=quiet)
    ensure_bucket(uri)
    manifest = make_scenes(uri, num_samples=10, shard_size=6, on_progress=quiet)
    assert manifest == small(tmp_path)
    store = open_store(uri)
    assert {name: store.read(name) for name in store.list()} == contents(tmp_path)
    assert check(uri, quiet).problems == []
    store.delete("shard-000001.tar")
    assert check(uri, quiet).problems == ["shard-000001.tar is missing"]


@pytest.mark.slow
def test_ray_tasks_write_what_one_process_writes_and_pass_on_its_errors(
    s3_env, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    uri = f"s3://b{uuid.uuid4().hex}/scenes"
    ensure_bucket(uri)
    progress = []
    with connected():
        manifest = make_scenes(
            uri,
            num_samples=25,
            shard_size=6,
            on_progress=lambda *numbers: progress.append(numbers),
        )
        with pytest.raises(DataError, match="'nobody-made-this' does not exist"):
            make_scenes("s3://nobody-made-this/x", num_samples=25, shard_size=6, on_progress=quiet)
        assert ray.is_initialized()
    assert len(progress) == 5
    assert progress[-1] == (25, 25)
    assert list(read_samples(open_store(uri), manifest)) == [make_sample(0, i) for i in range(25)]
    assert check(uri, quiet).problems == []


def test_check_counts_everything_and_reports_its_progress(tmp_path):
    manifest = small(tmp_path)
    progress = []
    result = check(str(tmp_path), lambda *numbers: progress.append(numbers))
    assert (result.num_shards, result.num_samples) == (2, 10)
    assert result.num_bytes == manifest.num_bytes
    assert progress == sorted(progress)
    assert progress[-1] == (10, 10)


def test_changed_bytes_are_found_and_the_bad_image_is_named(tmp_path):
    manifest = small(tmp_path)
    path = tmp_path / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    image = make_sample(0, 8).image
    place = data.find(image)
    data[place : place + len(image)] = bytes(len(image))
    path.write_bytes(data)
    result = check(str(tmp_path), quiet)
    assert len(result.problems) == 2
    assert "shard-000001.tar has sha256" in result.problems[0]
    assert "shard-000001.tar sample 2 (00000008): image does not decode" in result.problems[1]
    assert result.num_samples == manifest.num_samples


def test_a_cut_shard_is_named_with_the_sample_where_it_ends(tmp_path):
    small(tmp_path)
    path = tmp_path / "shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    result = check(str(tmp_path), quiet)
    size, torn = result.problems
    assert size == f"shard-000000.tar has {len(data) // 2} bytes, expected {len(data)}"
    assert torn.startswith("shard-000000.tar ")
    assert "at sample 2" in torn or "at sample 3" in torn
    assert str(Path("/tmp")) not in torn
    assert result.num_samples < 10


def test_a_shard_that_cannot_be_read_is_a_problem_of_the_data(tmp_path):
    small(tmp_path)
    (tmp_path / "shard-000001.tar").unlink()
    (tmp_path / "shard-000001.tar").symlink_to("/proc/self/mem")  # opens, and cannot be read
    (problem,) = check(str(tmp_path), quiet).problems
    assert problem == "shard-000001.tar: cannot be read: Input/output error"


def test_wrong_counts_missing_and_unlisted_objects_are_listed(tmp_path):
    store = FolderStore(tmp_path)
    manifest = small(tmp_path)
    first, second = manifest.shards
    wrong = replace(first, num_samples=5)
    write_manifest(store, replace(manifest, shards=(wrong, second)))
    (tmp_path / second.name).unlink()
    (tmp_path / "notes.txt").write_text("hello")
    assert check(store.uri, quiet).problems == [
        "shard-000000.tar holds more than 5 samples, its manifest says 5 (at sample 4)",
        "shard-000001.tar is missing",
        "notes.txt is not in the manifest: remove it if it is not needed",
    ]


def test_samples_that_do_not_parse_and_cut_images_are_all_listed(tmp_path):
    store = FolderStore(tmp_path)
    samples = [make_sample(0, index) for index in range(4)]
    samples[1] = replace(samples[1], extra={"short": 5})
    samples[3] = replace(samples[3], image=samples[3].image[:-900])
    shard = write_shard(store, "shard-000000.tar", samples)
    write_dataset(store, [(shard, CaptionCount())], {})
    no_short, cut = check(store.uri, quiet).problems
    assert no_short == "shard-000000.tar sample 1: sample 00000001: its json has no text 'short'"
    assert cut.startswith("shard-000000.tar sample 3 (00000003): image does not decode")


def test_a_damaged_manifest_is_listed_and_a_missing_one_raises(tmp_path):
    with pytest.raises(DataError, match="has no manifest"):
        check(str(tmp_path / "nothing"), quiet)
    small(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_bytes())
    content["shards"][0]["num_bytes"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    (problem,) = check(str(tmp_path), quiet).problems
    assert "it was edited" in problem


def test_no_thread_or_ray_is_left_behind(tmp_path):
    before = threading.active_count()
    small(tmp_path)
    assert threading.active_count() == before
    assert not ray.is_initialized()
