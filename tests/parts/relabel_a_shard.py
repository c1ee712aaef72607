"""Captions the only shard of a data set, to be killed meanwhile: CONFIG."""

from __future__ import annotations

import sys

from lotlip.data.manifest import read_manifest
from lotlip_platform.captioners import captioner_of
from lotlip_platform.config import load_config
from lotlip_platform.relabel_asking import Work
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_shard import relabel_shard
from lotlip_platform.storage import open_store

if __name__ == "__main__":
    config = load_config(RelabelConfig, sys.argv[1])
    work = Work(config=config, folder=f"{config.store}/{config.name}", revision="r")
    shard = read_manifest(open_store(config.source)).shards[0]
    relabel_shard(work, shard, captioner_of(config), lambda event: None)
