"""Work on shards, and features of a locked tower, on a real local Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from lotlip.data.manifest import read_manifest
from lotlip.data.store import FolderStore
from lotlip.errors import CheckpointError, ClusterError, DataError
from lotlip.model import PRESETS
from lotlip.model.image_tower import ImageTower
from lotlip_platform.features import check_tower, feature_set
from lotlip_platform.shard_tasks import check_all_here, in_tasks
from lotlip_platform.storage import ensure_bucket, open_store


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def double(number: int, wait_s: float = 0.0) -> int:
    if number < 0:
        raise DataError(f"{number} is negative")
    if number == 0:
        raise ZeroDivisionError("nothing to double")
    time.sleep(wait_s)
    return 2 * number


def test_results_come_with_their_places_as_they_get_ready():
    assert list(in_tasks(double, [(1, 3.0), (2,)])) == [(1, 4), (0, 2)]


def test_an_error_of_the_users_comes_as_it_was_raised():
    with pytest.raises(DataError, match=r"^-1 is negative$"):
        list(in_tasks(double, [(-1,)]))


def test_any_other_error_is_one_line():
    with pytest.raises(
        ClusterError, match=r"a task on a shard failed: .*nothing to double"
    ) as error:
        list(in_tasks(double, [(0,)]))
    assert "\n" not in str(error.value)


def test_shards_that_are_not_where_they_should_be_are_told(scenes_folder: Path, tmp_path: Path):
    shards = read_manifest(FolderStore(scenes_folder)).shards
    check_all_here(FolderStore(scenes_folder), shards)
    with pytest.raises(DataError, match=r"lacks shard-000000\.tar and 1 more"):
        check_all_here(FolderStore(tmp_path), shards)


def tower(seed: int = 0) -> ImageTower:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTower(PRESETS["tiny"].image).eval()


def features(data: Path, kept_in: str, progress: list[int], **changes: Any) -> str:
    arguments: dict[str, Any] = {"tower": tower(), "gpus": 0.0}
    return feature_set(
        manifest=read_manifest(FolderStore(data)),
        data=str(data),
        kept_in=kept_in,
        on_progress=lambda done, total: progress.append(done),
        **{**arguments, **changes},
    )


def test_features_are_kept_in_s3_and_an_interrupted_run_goes_on(scenes_folder: Path, s3_env: str):
    ensure_bucket("s3://features")
    progress: list[int] = []

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_set(
            tower(),
            read_manifest(FolderStore(scenes_folder)),
            data=str(scenes_folder),
            kept_in="s3://features/all",
            gpus=0.0,
            on_progress=interrupt,
        )
    (first, *_) = open_store("s3://features/all").list()
    assert first.endswith(".tar")
    uri = features(scenes_folder, "s3://features/all", progress)
    assert progress[-1] == 60
    manifest = read_manifest(open_store(uri), of_features=True)
    assert manifest.num_samples == 60
    assert features(scenes_folder, "s3://features/all", progress) == uri
    assert features(scenes_folder, "s3://features/all", [], tower=tower(1)) != uri

    check_tower(manifest.made_by, tower())
    with pytest.raises(
        CheckpointError, match=r"not the one that model\.image.pretrained names now"
    ):
        check_tower(manifest.made_by, tower(1))
    with pytest.raises(DataError, match=rf"holds image features, .*{scenes_folder}"):
        read_manifest(open_store(uri))
