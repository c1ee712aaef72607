"""`lotlip train`: from a config to a trained, evaluated and registered model.

The driver checks everything that can be checked, prepares the run folder and the run in MLflow, has
`lives` run the workers, and registers the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from lotlip.configuration import to_dict
from lotlip.data import manifest as manifests
from lotlip.data.manifest import Manifest, read_manifest
from lotlip.data.order import EpochOrder
from lotlip.data.sample import from_members
from lotlip.data.shards import DamagedShardError, read_shard
from lotlip.data.store import Store
from lotlip.errors import ClusterError, DataError
from lotlip.evaluate.retrieval import Interval
from lotlip.model.image_tower import ImageTower
from lotlip.model.pretrained import find_folder
from lotlip.tokenizer import Tokenizer
from lotlip_platform import tracking
from lotlip_platform.cluster import connected
from lotlip_platform.config import dump_config, flat
from lotlip_platform.datasets import make_scenes
from lotlip_platform.features import feature_set, saving
from lotlip_platform.lineage import code_tags
from lotlip_platform.listener import Watch
from lotlip_platform.lives import run_workers
from lotlip_platform.local_services import home
from lotlip_platform.model_card import model_card
from lotlip_platform.ownership import owned
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.scaling import check_resources, worker_counts
from lotlip_platform.shard_versions import TrainingData, check_shards
from lotlip_platform.storage import open_store
from lotlip_platform.tracked_folder import tracked_folder
from lotlip_platform.tracked_run import TrackedRun
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.train_worker import initial_model


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run leaves behind."""

    folder: str
    """The run folder; its `model` is an export folder."""
    run_id: str
    """The MLflow run; empty if the server has not answered yet."""
    tracking_uri: str
    model_uri: str
    """`models:/NAME/VERSION`; empty if the model was not to be registered, or not yet."""
    digest: str
    metrics: dict[str, Interval]


def train(config: TrainConfig, watch: Watch, *, command: str = "") -> TrainResult:
    """Train, or resume the run of this name; a run that is done is only registered if it isn't yet.

    `command` is what goes on after a stop; it is noted at the run.

    Raises: LotlipError; whatever is wrong with config, data, tracking or cluster is said before
    anything is written. `Stopped` when SIGINT or SIGTERM stopped it, see `preemption`.
    """
    uri = tracking.tracking_uri(config.tracking.uri)
    with contextlib.suppress(tracking.AwayError):  # a server may come back
        tracking.connect(uri)
    manifest = checked_data(config, watch)
    folder = RunFolder(open_store(config.store or str(home() / "runs")).at(config.name))
    folder.check_claim(config, manifest.digest)
    if folder.read_result() is None and not config.data.features:
        data = open_store(config.data.train)
        check_shards(data, manifest, folder.read_shards(config.data.train))
    if folder.read_result() is None:
        with connected():
            check_resources(config.cluster)
            tokenizer = folder.read_tokenizer() or make_tokenizer(config, manifest)
            model = initial_model(config, tokenizer)  # what it can't load, it says now
            folder.claim(config, manifest.digest)
            folder.write_tokenizer(tokenizer)
            with (
                owned(folder) as owner,
                tracked_training(config, uri, folder, manifest, watch) as tracked,
            ):
                data = pinned(folder, training_data(config, manifest, model.image_tower, watch))
                watch({"kind": "started", "folder": folder.uri})
                run_workers(config, data, folder, tracked, owner, watch, command)
                _register(config, folder, manifest, tracked)
    elif not folder.read_tracked().get("ended") or _lacks_registration(config, folder):
        watch({"kind": "note", "text": f"{folder.uri} is trained: telling MLflow the rest"})
        with tracked_training(config, uri, folder, manifest, watch) as tracked:
            _register(config, folder, manifest, tracked)
    else:
        watch({"kind": "note", "text": f"{folder.uri} is done: nothing to train"})
    return _result(folder)


def _result(folder: RunFolder) -> TrainResult:
    result, tracked = folder.read_result(), folder.read_tracked()
    if result is None:
        raise ClusterError(f"the workers ended without a result in {folder.uri}: run it again")
    return TrainResult(
        folder=folder.uri,
        run_id=tracked.get("run_id", ""),
        tracking_uri=tracked["tracking_uri"],
        model_uri=tracked.get("model_uri", ""),
        digest=result["digest"],
        metrics=folder.metrics(),
    )


def checked_data(config: TrainConfig, watch: Watch) -> Manifest:
    """The manifest of the training data; scenes are made first where the config asks for it.

    Raises: ConfigError, DataError for what would otherwise stop the workers later.
    """
    _make_scenes(config, watch)
    manifest = read_manifest(open_store(config.data.train))
    loop, order = config.train, config.data.order
    EpochOrder(manifest, order, seed=loop.seed, epoch=0, global_batch=loop.global_batch)
    worker_counts(config.cluster, order.num_streams)
    if config.captions.num_sub_captions:
        _check_captioners("data.train", config.data.train, manifest, *config.captions.captioners)
    if config.data.features:
        open_store(config.data.features).exists(manifests.NAME)  # reaches it, or says why not
    if config.eval.data:
        held_out = read_manifest(open_store(config.eval.data))
        if held_out.num_samples < config.eval.num_samples:
            raise DataError(
                f"eval.data={config.eval.data} has {held_out.num_samples} samples, "
                f"eval.num_samples={config.eval.num_samples} were asked for"
            )
        if config.eval.captioner:
            _check_captioners("eval.data", config.eval.data, held_out, config.eval.captioner)
    return manifest


def _make_scenes(config: TrainConfig, watch: Watch) -> None:
    used = [uri.rstrip("/") for uri in (config.data.train, config.eval.data)]
    for split, uri, num_samples in config.scenes.data_sets():
        if uri not in used:
            continue
        if not open_store(uri).exists(manifests.NAME):
            watch({"kind": "note", "text": f"{uri} is empty: making {num_samples:,} scenes"})
            make_scenes(
                uri,
                num_samples=num_samples,
                split=split,
                on_progress=lambda done, total: watch(
                    {"kind": "scenes", "done": done, "total": total}
                ),
            )
        elif (there := read_manifest(open_store(uri)).num_samples) != num_samples:
            watch({"kind": "note", "text": f"{uri} has {there:,} scenes already: these are used"})


def _check_captioners(key: str, uri: str, manifest: Manifest, *asked: str) -> None:
    has = [name.removeprefix("long.") for name in manifest.captions if name.startswith("long.")]
    missing = [name for name in asked if name not in has]
    if missing or not has:
        raise DataError(
            f"{key}={uri} has no long captions"
            f"{f' by {missing[0]}' if missing else ''}; it has: {', '.join(has) or 'none'}"
        )


def make_tokenizer(config: TrainConfig, manifest: Manifest) -> Tokenizer:
    text = config.model.text
    pretrained = config.tokenizer.pretrained
    if pretrained:
        return Tokenizer.from_bert(
            find_folder(pretrained, "tokenizer.pretrained"),
            num_corner_tokens=text.num_corner_tokens,
            context_length=text.context_length,
        )
    captions = _captions(open_store(config.data.train), manifest, config.tokenizer.num_samples)
    return Tokenizer.learn(
        captions,
        vocab_size=text.vocab_size,
        num_corner_tokens=text.num_corner_tokens,
        context_length=text.context_length,
    )


def _captions(store: Store, manifest: Manifest, num_samples: int) -> Iterator[str]:
    """The captions of the first samples. Bad ones are passed over: the pipeline records them."""
    left = num_samples
    for shard in manifest.shards:
        for raw in islice(read_shard(store, shard), left):
            left -= 1
            with contextlib.suppress(DataError):
                if not isinstance(raw, DamagedShardError):
                    sample = from_members(raw)
                    yield from (sample.short, *sample.long.values())
        if left == 0:
            return


@contextmanager
def tracked_training(
    config: TrainConfig,
    uri: str,
    folder: RunFolder,
    manifest: Manifest,
    watch: Watch,
    *,
    parent: str = "",
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """The MLflow run of this folder, with all in it that is known beforehand.

    `parent` is the journal of the run that it is below.
    """
    about = {
        "data": open_store(config.data.train).uri,  # a relative path holds in one folder only
        "data_manifest": manifest.digest,
        "run_folder": folder.uri,
    }
    with tracked_folder(
        folder,
        uri=uri,
        experiment=config.tracking.experiment,
        name=config.name,
        params=flat(to_dict(config)),
        tags={**code_tags(), **about, **(tags or {})},
        note=lambda text: watch({"kind": "note", "text": text}),
        parent=parent,
    ) as tracked:
        _describe(config, manifest, tracked)
        yield tracked


def _describe(config: TrainConfig, manifest: Manifest, tracked: TrackedRun) -> None:
    """Tell what is known before the workers start; that a server has it already does no harm."""
    tracked.log_file("config.yaml", dump_config(config).encode())
    tracked.log_dataset(config.data.train, digest=manifest.digest, context="training")
    if config.eval.data:
        held_out = read_manifest(open_store(config.eval.data))
        tracked.log_dataset(config.eval.data, digest=held_out.digest, context="evaluation")


def training_data(config: TrainConfig, manifest: Manifest, tower: ImageTower, watch: Watch) -> str:
    """The address of what the workers train on: the data set, or its features."""
    if not config.data.features:
        return config.data.train
    uri = feature_set(
        tower,
        manifest,
        data=config.data.train,
        kept_in=config.data.features,
        gpus=config.cluster.gpus_per_worker,
        on_progress=lambda done, total: watch({"kind": "features", "done": done, "total": total}),
    )
    saved = saving(read_manifest(open_store(uri), of_features=True), manifest)
    watch({"kind": "note", "text": f"features of the locked image tower: {saved}"})
    return uri


def pinned(folder: RunFolder, uri: str) -> TrainingData:
    """The data in the versions that the run began with. Raises: DataError if they are gone."""
    store = open_store(uri)
    manifest = read_manifest(store, of_features=True)
    tags = check_shards(store, manifest, folder.read_shards(uri))
    folder.write_shards(uri, tags)
    # A folder's times may differ between machines that see it, or hold copies of it.
    return TrainingData(uri, tags if uri.startswith("s3://") else {})


def _lacks_registration(config: TrainConfig, folder: RunFolder) -> bool:
    return bool(config.tracking.registered_model) and not folder.read_tracked().get("model_uri")


def _register(
    config: TrainConfig, folder: RunFolder, manifest: Manifest, tracked: TrackedRun
) -> None:
    """Have the exported model logged to its run and registered."""
    if config.tracking.registered_model:
        card = model_card(config, manifest, folder.metrics())
        tracked.register(f"{folder.uri}/model", config.tracking.registered_model, card)
