"""The features of a locked image tower, computed on the cluster before training reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import ray
import torch

from lotlip.data import manifest as manifests
from lotlip.data.features import feature_set_name, write_feature_shard
from lotlip.data.manifest import Manifest, Shard, read_manifest, write_manifest
from lotlip.data.shards import described
from lotlip.model.image_tower import ImageTower
from lotlip_platform.cluster import store_environment
from lotlip_platform.shard_tasks import in_tasks
from lotlip_platform.storage import open_store


def feature_set(
    tower: ImageTower,
    manifest: Manifest,
    *,
    data: str,
    kept_in: str,
    gpus: float,
    on_progress: Callable[[int, int], None],
) -> str:
    """The address of the features of a data set, which are computed if they aren't there yet.

    Ray must be connected. What an interrupted run wrote is kept.

    Args:
        kept_in: the folder of all feature sets.
        gpus: GPUs for each task; a task works on one shard.
        on_progress: gets the numbers of samples done and of all; not called if nothing is to do.

    Raises: DataError, ClusterError.
    """
    store = open_store(kept_in).at(feature_set_name(tower, manifest))
    if store.exists(manifests.NAME):
        read_manifest(store)  # whole, or an error
        return store.uri
    shared = ray.put(tower)
    environment = store_environment()
    calls = [
        (open_store(data).uri, shard, store.uri, shared, environment) for shard in manifest.shards
    ]
    written: dict[int, Shard] = {}
    on_progress(0, manifest.num_samples)
    for place, shard in in_tasks(_write, calls, gpus=gpus):
        written[place] = shard
        on_progress(sum(shard.num_samples for shard in written.values()), manifest.num_samples)
    made_by = {"command": "train", "features_of": data, "data_digest": manifest.digest}
    shards = tuple(written[place] for place in range(len(calls)))
    write_manifest(store, Manifest(shards=shards, captions=manifest.captions, made_by=made_by))
    return store.uri


def _write(
    data: str, shard: Shard, kept_in: str, tower: ImageTower, environment: Mapping[str, str]
) -> Shard:
    os.environ.update(environment)
    target = open_store(kept_in)
    if target.exists(shard.name):  # of an earlier run: objects are written wholly or not at all
        with target.open(shard.name) as file:
            return described(file, shard.name, shard.num_samples)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return write_feature_shard(open_store(data), shard, target, tower.to(device).eval())
