"""The features of a locked image tower, computed on the cluster before training reads them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from lotlip.data import manifest as manifests
from lotlip.data.features import tower_digest, write_feature_shard
from lotlip.data.manifest import FEATURES_OF, Manifest, Shard, read_manifest, write_manifest
from lotlip.data.shards import described
from lotlip.errors import CheckpointError
from lotlip.model.image_tower import ImageTower
from lotlip_platform.cluster import store_environment
from lotlip_platform.shard_tasks import check_all_here, in_tasks
from lotlip_platform.storage import open_store

TOWER = "tower"
"""In `made_by` of a feature set: the digest of the tower whose features they are."""
SECONDS = "seconds_per_image"
"""In `made_by` of a feature set: how long a task was at work on an image."""


def feature_set(
    tower: ImageTower,
    manifest: Manifest,
    *,
    data: str,
    kept_in: str,
    gpus: float,
    on_progress: Callable[[int, int], None],
    in_tasks_of_ray: bool = True,
) -> str:
    """The address of the features of a data set, which are computed if they aren't there yet.

    What an interrupted run wrote is kept.

    Args:
        kept_in: the folder of all feature sets.
        gpus: GPUs for each task; a task works on one shard.
        in_tasks_of_ray: Ray must be connected then; otherwise all is done here, on one GPU if any.
        on_progress: gets the numbers of samples done and of all; not called if nothing is to do.

    Raises: DataError, ClusterError.
    """
    made_of = tower_digest(tower)
    store = open_store(kept_in).at(f"{made_of}-{manifest.digest}")
    if store.exists(manifests.NAME):
        read_manifest(store, of_features=True)  # in order, or an error
        return store.uri
    shared = ray.put(tower) if in_tasks_of_ray else tower
    device = "cuda" if gpus else "cpu"
    environment = store_environment()
    source = open_store(data).uri
    calls = [(source, shard, store.uri, shared, device, environment) for shard in manifest.shards]
    written: dict[int, Shard] = {}
    timed, seconds = 0, 0.0
    on_progress(0, manifest.num_samples)
    done = in_tasks(_write, calls, gpus=gpus) if in_tasks_of_ray else _here(calls)
    for place, (shard, took) in done:
        written[place] = shard
        timed, seconds = timed + shard.num_samples * (took > 0), seconds + took
        on_progress(sum(shard.num_samples for shard in written.values()), manifest.num_samples)
    made_by: dict[str, Any] = {FEATURES_OF: data, "data_digest": manifest.digest, TOWER: made_of}
    if timed:
        made_by[SECONDS] = seconds / timed
    shards = tuple(written[place] for place in range(len(calls)))
    check_all_here(store, shards)
    write_manifest(store, Manifest(shards=shards, captions=manifest.captions, made_by=made_by))
    return store.uri


def saving(features: Manifest, pixels: Manifest) -> str:
    """What an epoch on a feature set saves, in words."""
    smaller = (
        f"an epoch reads {features.num_bytes / 1e6:,.1f} MB, not {pixels.num_bytes / 1e6:,.1f}"
    )
    if SECONDS not in features.made_by:
        return smaller
    minutes = features.made_by[SECONDS] * features.num_samples / 60
    return f"{smaller}; tasks spent {minutes:,.1f} minutes on the images, once for all epochs"


def check_tower(made_by: Mapping[str, Any], tower: ImageTower) -> None:
    """Raises: CheckpointError if features are to be trained on that are not of this tower."""
    if TOWER in made_by and made_by[TOWER] != tower_digest(tower):
        raise CheckpointError(
            "the image tower of the checkpoint is not the one that model.image.pretrained names "
            "now: bring its old weights back, or start a run of another name"
        )


def _here(calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[Shard, float]]]:
    return ((place, _write(*call)) for place, call in enumerate(calls))


def _write(
    data: str,
    shard: Shard,
    kept_in: str,
    tower: ImageTower,
    device: str,
    environment: Mapping[str, str],
) -> tuple[Shard, float]:
    """The written shard, and the seconds it took: 0 if it was there already."""
    os.environ.update(environment)
    target = open_store(kept_in)
    if target.exists(shard.name):  # of an earlier run: objects are written wholly or not at all
        with target.open(shard.name) as file:
            return described(file, shard.name), 0.0
    source, tower = open_store(data), tower.to(device).eval()
    began = time.perf_counter()
    return write_feature_shard(source, shard, target, tower), time.perf_counter() - began
