"""`lotlip relabel`: long captions by a multimodal language model, as a Ray Data job.

Each row is a shard, and each actor of the pool captions one at a time, see `relabel_shard`. The
manifest of the new data set is written when all of its shards are committed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from lotlip.configuration import to_dict
from lotlip.data import manifest as manifests
from lotlip.data.manifest import Manifest, Shard, read_manifest, write_manifest
from lotlip.errors import ClusterError, ConfigError, DataError
from lotlip_platform import tracking
from lotlip_platform.captioners import check_captioner
from lotlip_platform.cluster import beside_driver, connected, store_environment
from lotlip_platform.config import dump_config, flat
from lotlip_platform.lineage import code_tags
from lotlip_platform.listener import Watch
from lotlip_platform.local_services import home
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.ownership import owned
from lotlip_platform.ray_data import Unseen
from lotlip_platform.relabel_account import Account
from lotlip_platform.relabel_asking import Work
from lotlip_platform.relabel_config import RelabelConfig, settings
from lotlip_platform.relabel_folder import RelabelFolder, Tally
from lotlip_platform.relabel_pool import in_pool
from lotlip_platform.relabel_vllm import Answered, ask_all
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.scaling import check_resources
from lotlip_platform.shard_ledger import ShardLedger, counted, manifest_of, whole
from lotlip_platform.storage import open_store
from lotlip_platform.tracked_folder import tracked_folder
from lotlip_platform.tracked_run import TrackedRun

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Relabelled:
    """A data set with new captions."""

    uri: str
    digest: str
    folder: str
    """The run folder."""
    run_id: str
    """The MLflow run; empty if the server has not answered yet."""
    num_shards: int
    tally: Tally
    failed: Mapping[str, int]
    """How many answers failed each rule of the audit, kept or not."""
    account: Mapping[str, float]


def relabel(config: RelabelConfig, watch: Watch) -> Relabelled:
    """Caption a data set, or go on with the run of this name.

    Raises: LotlipError; what is wrong with config, data, captioner, tracking or cluster is said
    before anything is written.
    """
    uri = tracking.tracking_uri(config.tracking.uri)
    with contextlib.suppress(tracking.AwayError):  # a server may come back
        tracking.connect(uri)
    manifest = _checked_source(config)
    folder = RunFolder(open_store(config.store or str(home() / "runs")).at(config.name))
    folder.check_claim(config, manifest.digest)
    _check_target(config, folder)
    if folder.read_result() is None:
        revision = check_captioner(config, RelabelFolder(folder.store).revision())
        with connected():
            check_resources(config.cluster.as_cluster())
            folder.claim(config, manifest.digest)
            with (
                owned(folder) as owner,
                _tracked(config, uri, folder, manifest, watch) as tracked,
            ):
                RelabelFolder(folder.store).claim_revision(revision)
                watch({"kind": "started", "folder": folder.uri})
                work = Work(config=config, folder=folder.uri, revision=revision, token=owner.token)
                _caption(work, folder, manifest, tracked, watch)
                _finish(config, folder, manifest, revision, tracked)
    else:
        _check_whole(config, folder)
        watch({"kind": "note", "text": f"{folder.uri} is done: nothing to caption"})
    return _result(folder)


def _checked_source(config: RelabelConfig) -> Manifest:
    """Raises: DataError if there is none, ConfigError if it has captions of this name."""
    manifest = read_manifest(open_store(config.source))
    for name in config.captioners:
        if f"long.{name}" in manifest.captions:
            raise ConfigError(
                f"source={config.source} has captions by {name} already: give another "
                "captioner.name"
            )
    return manifest


def _check_target(config: RelabelConfig, folder: RunFolder) -> None:
    """Raises: DataError if something else is there, or can't be."""
    store = open_store(config.target)
    if store.exists(manifests.NAME):
        found = read_manifest(store)
        if found.made_by.get("run_folder") != folder.uri:
            raise DataError(
                f"target={config.target} holds another data set: give another place, or remove "
                "that one first"
            )


def _check_whole(config: RelabelConfig, folder: RunFolder) -> None:
    """Raises: DataError if what a run made is no longer there."""
    target = open_store(config.target)
    entries = ShardLedger(folder.store).entries()
    if not target.exists(manifests.NAME) or len(whole(entries, target)) < len(entries):
        raise DataError(
            f"{folder.uri} is done, but {target.uri} no longer holds what it wrote: to caption "
            "again, give another name=..."
        )


@contextmanager
def _tracked(
    config: RelabelConfig, uri: str, folder: RunFolder, manifest: Manifest, watch: Watch
) -> Iterator[TrackedRun]:
    """The MLflow run of the relabelling."""
    about = {
        "kind": "relabel",
        "data": open_store(config.source).uri,
        "data_manifest": manifest.digest,
        "run_folder": folder.uri,
    }
    with tracked_folder(
        folder,
        uri=uri,
        experiment=config.tracking.experiment,
        name=config.name,
        params=flat(to_dict(config)),
        tags={**code_tags(), **about},
        note=lambda text: watch({"kind": "note", "text": text}),
    ) as tracked:
        tracked.log_file("config.yaml", dump_config(config).encode())
        tracked.log_dataset(config.source, digest=manifest.digest, context="captioned")
        yield tracked


def _caption(
    work: Work, folder: RunFolder, manifest: Manifest, tracked: TrackedRun, watch: Watch
) -> None:
    """Commit the shards that aren't yet. Raises: LotlipError."""
    config, ledger = work.config, ShardLedger(folder.store)
    entries = ledger.entries()
    before = whole(entries, open_store(config.target))
    if lost := sorted(set(entries) - set(before)):
        text = f"{config.target} lacks {lost[0]} and {len(lost) - 1} more that were there: again"
        watch({"kind": "note", "text": text})
    for name in lost:
        ledger.forget(name)
    left = [shard for shard in manifest.shards if shard.name not in before]
    if not left:
        return
    account = Account(config, manifest, [Tally(**entry.counts) for entry in before.values()])
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox)
    mailbox = mailbox.options(scheduling_strategy=beside_driver()).remote()
    with _following(mailbox, account, tracked, watch):
        if config.captioner.vllm.model:
            _by_vllm(config, work, left, mailbox, account)
        else:
            for tally in in_pool(config, work, left, mailbox):
                account.take_shard(tally)


def _by_vllm(
    config: RelabelConfig, work: Work, shards: Sequence[Shard], mailbox: Any, account: Account
) -> None:
    """A round of questions after another, about a few shards at once; those that are through are
    committed. Raises: LotlipError."""
    at_once = config.captioner.vllm.shards_at_once
    for first in range(0, len(shards), at_once):
        _rounds_by_vllm(config, work, shards[first : first + at_once], mailbox, account)


def _rounds_by_vllm(
    config: RelabelConfig, work: Work, shards: Sequence[Shard], mailbox: Any, account: Account
) -> None:
    environment, ledger = Unseen(store_environment()), ShardLedger(open_store(work.folder))
    for ask in range(config.audit.max_asks):
        began_s = time.monotonic()
        try:
            for tally in ask_all(work, shards, ask, environment):
                account.take(asdict(tally))
        finally:
            took_s = (time.monotonic() - began_s) * config.cluster.num_workers
            RelabelFolder(ledger.store).add_engine_s(took_s)
        for tally in in_pool(config, work, shards, mailbox, Answered(ask)):
            account.take_shard(tally)
        done = ledger.entries()
        shards = [shard for shard in shards if shard.name not in done]
        if not shards:
            return


@contextmanager
def _following(mailbox: Any, account: Account, tracked: TrackedRun, watch: Watch) -> Iterator[None]:
    """Tell how it goes, beside Ray Data, which has the main thread."""
    ended = threading.Event()

    def look() -> None:
        with contextlib.suppress(RayError):  # the main thread learns of that, too
            for event in ray.get(mailbox.take.remote()):
                account.take(event)
        tracked.attend()
        watch({"kind": "captioned", **account.progress()})
        if due := account.due_metrics():
            tracked.log_metrics(due, step=account.num_answers)

    def follow() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()


def _finish(
    config: RelabelConfig,
    folder: RunFolder,
    manifest: Manifest,
    revision: str,
    tracked: TrackedRun,
) -> None:
    """Write the manifest, and what has become of it all. Raises: DataError if a shard is gone."""
    kept, target = RelabelFolder(folder.store), open_store(config.target)
    entries = kept.ledger.entries()
    in_order = [entries[shard.name] for shard in manifest.shards]
    counts, failed = counted(in_order)
    tally = Tally(**counts) + Tally(worker_s=kept.engine_s())
    made_by = {
        "command": "relabel",
        "run_folder": folder.uri,
        "source": open_store(config.source).uri,
        "source_digest": manifest.digest,
        "captioner": config.captioner.name,
        **settings(config, revision),
        "prompts": to_dict(config.prompts),
        "source_made_by": dict(manifest.made_by),
    }
    made = manifest_of(target, in_order, made_by)
    write_manifest(target, made)
    account = Account(config, manifest, [tally]).totals()
    result = {
        "uri": target.uri,
        "digest": made.digest,
        "num_shards": len(made.shards),
        "tally": asdict(tally),
        "failed": dict(failed),
        "account": account,
    }
    tracked.log_metrics(account, step=tally.num_answers)
    tracked.log_file("result.json", json.dumps(result, indent=1).encode())
    tracked.tag({"captioned_data": target.uri, "captioned_manifest": made.digest})
    kept.forget_answers()
    folder.write_result(result)


def _result(folder: RunFolder) -> Relabelled:
    result, tracked = folder.read_result(), folder.read_tracked()
    if result is None:
        raise ClusterError(f"the run ended without a result in {folder.uri}: run it again")
    return Relabelled(
        **{**result, "tally": Tally(**result["tally"])},
        folder=folder.uri,
        run_id=tracked.get("run_id", ""),
    )
