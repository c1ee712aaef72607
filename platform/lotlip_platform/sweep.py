"""`lotlip sweep`: training runs that differ in little, under Ray Tune.

The driver checks and prepares all trials, hands them to Tune, which has `sweep_trial` run them, and
takes what they tell: into the sweep's ledger, and into MLflow, a run for each trial below that of
the sweep.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lotlip.configuration import to_dict
from lotlip.data.store import Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip_platform import tracking
from lotlip_platform.cluster import connected
from lotlip_platform.config import dump_config, load_config, shipped_configs
from lotlip_platform.job_environment import how_to_go_on
from lotlip_platform.lineage import code_tags
from lotlip_platform.listener import Watch
from lotlip_platform.local_services import home
from lotlip_platform.ownership import owned
from lotlip_platform.preemption import stop_signals
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.scaling import check_resources
from lotlip_platform.storage import open_store
from lotlip_platform.sweep_config import Refused, SweepConfig, Trial, trials
from lotlip_platform.sweep_figures import Mode
from lotlip_platform.sweep_follower import Follower
from lotlip_platform.sweep_ledger import Ledger, TrialRecord, best_of, scores
from lotlip_platform.sweep_report import make_report
from lotlip_platform.sweep_run import Parent, Preparation, TrialRun
from lotlip_platform.tracked_folder import tracked_folder
from lotlip_platform.tracked_run import TrackedRun

_CONFIG = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep leaves behind."""

    folder: str
    tracking_uri: str
    run_id: str
    """The sweep's MLflow run; empty if the server has not answered yet."""
    records: Sequence[TrialRecord]
    overhead_s: float | None
    """Of a trial of this start: seconds beyond its training, starting the workers included; None
    if nothing was left to train."""
    between_s: float | None
    """That warm workers were without work between two trials, on average; None if none were."""


def sweep(config: SweepConfig, watch: Watch) -> SweepResult:
    """Train all trials, or those that the sweep of this name has not trained yet.

    A trial that can't be trained has failed. Raises: LotlipError, before anything is written for
    what is wrong with the config, or with the data of all trials; KeyboardInterrupt when it was
    stopped, once the trials have saved.
    """
    folder = RunFolder(_store(config))
    uri = tracking.tracking_uri(config.tracking.uri)
    ledger, preparation = Ledger(folder.store), Preparation(watch)
    wanted, refused = _trainable(config, folder.store.at("trials").uri, preparation)
    known = ledger.read()
    with connected():
        for cluster in {trial.config.cluster for trial in wanted}:
            check_resources(cluster)
        with owned(folder) as owner:
            beside = ThreadPoolExecutor(max_workers=1)
            parent = Parent(config, folder, uri, owner, ledger, beside)
            runs = [TrialRun(trial, known.get(trial.name), parent, watch) for trial in wanted]
            for run in runs:
                run.check(preparation)
            names = [trial.name for trial in (*wanted, *refused)]
            kept = {**to_dict(config), "trials": names}
            folder.store.write(_CONFIG, json.dumps(kept, indent=1).encode())
            tracking_run = _tracked(config, uri, folder, watch)
            with tracking_run as tracked, stop_signals() as request, beside:
                records = [_refused(one, known.get(one.name), ledger, watch) for one in refused]
                ready = _prepared(runs, preparation)
                follower = Follower(config, ready, owner, tracked, request, watch)
                if not all(run.was_over for run in ready):
                    follower.fit()
                if request.by:
                    raise KeyboardInterrupt(
                        f"stopped by {request.by}, trials saved; {how_to_go_on()} goes on from here"
                    )
                records = [*(run.record for run in runs), *records]
                _summarise(config, records, folder, tracked)
    between = [run.between_s for run in runs if run.between_s]
    return SweepResult(
        folder=folder.uri,
        tracking_uri=uri,
        run_id=folder.read_tracked().get("run_id", ""),
        records=records,
        overhead_s=follower.overhead_s,
        between_s=statistics.fmean(between) if between else None,
    )


def _prepared(runs: Sequence[TrialRun], preparation: Preparation) -> list[TrialRun]:
    """Those that can be prepared; the others have failed. Raises: LotlipError if none can be."""
    ready, failure = [], None
    for run in runs:
        try:
            run.prepare(preparation)
        except (ConfigError, CheckpointError) as error:
            run.refuse(str(error))
            failure = failure or type(error)(f"{run.trial.label}: {error}")
        else:
            ready.append(run)
    if failure is not None and not ready:
        raise failure
    return ready


def _refused(one: Refused, known: TrialRecord | None, ledger: Ledger, watch: Watch) -> TrialRecord:
    """Its record; what was trained when it still could be stays as it is."""
    record = known or TrialRecord(name=one.name, point=one.point, seed=one.seed, num_samples=0)
    if not record.is_over:
        record.status, record.error = "failed", one.reason
        ledger.write(record)
        watch({"kind": "trial", "status": record.status, "trial": record})
    return record


def _trainable(
    config: SweepConfig, runs: str, preparation: Preparation
) -> tuple[list[Trial], list[Refused]]:
    """The trials, and those that can't be trained, by their config or for their data.

    Raises: ConfigError, DataError where that is so for all.
    """
    planned, refused = trials(config, runs)
    wanted, failure = [], None
    for trial in planned[: config.budget.max_trials or None]:
        try:
            preparation.check(trial)
        except (ConfigError, DataError) as error:
            told = Refused(name=trial.name, point=trial.point, seed=trial.seed, reason=str(error))
            refused.append(told)
            failure = failure or type(error)(f"{trial.label}: {error}")
        else:
            wanted.append(trial)
    if failure is not None and not wanted:
        raise failure
    return wanted, refused


@contextmanager
def _tracked(
    config: SweepConfig, uri: str, folder: RunFolder, watch: Watch
) -> Iterator[TrackedRun]:
    """The sweep's own MLflow run."""
    params = {"train": config.train, "metric": config.metric, "seeds": list(config.seeds)}
    with tracked_folder(
        folder,
        uri=uri,
        experiment=config.tracking.experiment,
        name=config.name,
        params={**params, **{f"space.{key}": values for key, values in config.space.items()}},
        tags={**code_tags(), "run_folder": folder.uri, "sweep": config.name},
        note=lambda text: watch({"kind": "note", "text": text}),
    ) as tracked:
        tracked.log_file("config.yaml", dump_config(config).encode())
        yield tracked


def find_sweep(name: str, overrides: Sequence[str] = ()) -> Store:
    """Where a sweep lies: by its address, by its config, or by its name in the lotlip home.

    Raises: ConfigError.
    """
    for folder in (Path(name).expanduser(), home() / "sweeps" / name):
        if (folder / _CONFIG).is_file():
            return open_store(str(folder))
    if "://" in name:
        return open_store(name)
    for config in (name, f"sweep/{name}"):
        is_shipped = config.removesuffix(".yaml") in shipped_configs()
        if is_shipped or Path(config).expanduser().is_file():
            return _store(load_config(SweepConfig, config, overrides))
    raise ConfigError(f"there is no sweep {name}: give its config, or its address")


def _store(config: SweepConfig) -> Store:
    return open_store(config.store or str(home() / "sweeps")).at(config.name)


def report(folder: Store) -> str:
    """Write the report of the sweep that lies there, as far as it has come; its address.

    Raises: DataError if there is none.
    """
    if not folder.exists(_CONFIG):
        raise DataError(f"{folder.uri} holds no sweep: was it started?")
    kept = json.loads(folder.read(_CONFIG))
    known = Ledger(folder).read()
    wanted = kept.get("trials", known)  # which older sweeps did not write down
    records = [known[name] for name in wanted if name in known]
    _write_report(folder, kept["name"], records, kept["metric"], kept["mode"])
    return f"{folder.uri}/report/report.html"


def _summarise(
    config: SweepConfig, records: Sequence[TrialRecord], folder: RunFolder, tracked: TrackedRun
) -> None:
    """Tell MLflow how many trials came to which end, and the best; and write the report."""
    ends = Counter(record.status for record in records)
    values = {f"sweep/{end}": float(ends[end]) for end in ("finished", "stopped", "failed")}
    best = best_of(scores(records, config.metric, config.mode))
    if best is not None:
        values[f"sweep/best_{config.metric}"] = best.mean
        tracked.tag({"best": best.label})
    tracked.log_metrics(values, step=0)
    files = _write_report(folder.store, config.name, records, config.metric, config.mode)
    for name, content in files.items():
        tracked.log_file(name, content)


def _write_report(
    folder: Store, name: str, records: Sequence[TrialRecord], metric: str, mode: Mode
) -> dict[str, bytes]:
    files = make_report(name, records, metric, mode)
    for file, content in files.items():
        folder.write(f"report/{file}", content)
    return files
