"""`lotlip precompute`: what a locked image tower makes of a data set, kept for all runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lotlip.data.manifest import read_manifest
from lotlip.errors import ConfigError
from lotlip_platform.cluster import connected
from lotlip_platform.features import saving
from lotlip_platform.listener import Watch
from lotlip_platform.scaling import check_resources
from lotlip_platform.storage import open_store
from lotlip_platform.train import checked_data, training_data
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.train_worker import initial_model


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """A feature set."""

    uri: str
    num_samples: int
    num_bytes: int
    saving: str
    """What an epoch on it saves, in words."""


def precompute(config: TrainConfig, watch: Watch) -> Precomputed:
    """Compute the features that runs of this config read in place of pixels, if they aren't there.

    Raises: LotlipError.
    """
    if not config.data.features:
        raise ConfigError(
            "data.features is empty: say where features are to be kept, "
            "data.features=s3://BUCKET/PREFIX or a folder"
        )
    manifest = checked_data(config, watch)
    text = replace(config.model.text, pretrained="")  # nothing is made of texts here
    config = replace(config, model=replace(config.model, text=text))
    with connected():
        check_resources(replace(config.cluster, num_workers=1))  # tasks may come one by one
        tower = initial_model(config, None).image_tower
        uri = training_data(config, manifest, tower, watch)
    features = read_manifest(open_store(uri), of_features=True)
    return Precomputed(
        uri=uri,
        num_samples=features.num_samples,
        num_bytes=features.num_bytes,
        saving=saving(features, manifest),
    )
