"""`lotlip track`: bringing MLflow in line with what happened, after the fact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lotlip.errors import DataError, LotlipError
from lotlip_platform.journal import Journal, journals
from lotlip_platform.ownership import is_alive
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.sender import ID_TAG, Sender
from lotlip_platform.storage import open_store
from lotlip_platform.tracking import Server, connect, failures_named, tracking_uri


@dataclass(frozen=True)
class Outcome:
    """What became of one journal."""

    text: str
    is_done: bool


def sync() -> Iterator[Outcome]:
    """Send the journals on this machine; those that are through are removed."""
    tracking_uri()  # takes a user and password from the environment; journals hold none
    for journal in journals():
        name = _name(journal)
        try:
            journal.end_killed_life()
        except BlockingIOError:
            yield Outcome(f"{name}: is at work here, and being sent meanwhile", is_done=True)
            continue
        except OSError as error:
            yield Outcome(f"{name}: {journal.folder}: {error.strerror}", is_done=False)
            continue
        try:
            with journal.sending():
                outcome = _synced(journal, name)
        except BlockingIOError:
            outcome = Outcome(f"{name}: is being sent by another process", is_done=True)
        yield outcome


def _synced(journal: Journal, name: str) -> Outcome:
    is_sent = Sender(journal).send()
    sent = journal.sent()
    if not is_sent:
        return Outcome(f"{name}: {sent.trouble}", is_done=False)
    refused = "".join(f"\n  refused: {reason}" for reason in sent.refused)
    journal.remove_if_sent()
    return Outcome(f"{name}: all in MLflow, run {sent.run_id}{refused}", is_done=True)


def _name(journal: Journal) -> str:
    entry = next((e for e, _ in journal.read(0) if e["kind"] == "open"), {})
    return entry.get("name", journal.folder.name)


def reconcile(server_uri: str = "") -> Iterator[str]:
    """End runs that MLflow shows as running though no process is at work on them.

    As FINISHED if their result is in the run folder, else as KILLED. Raises: TrackingError.
    """
    server = connect(server_uri)
    at_work = {journal.folder.name for journal in journals() if journal.is_owned}
    with failures_named(server.uri):
        for run in list(_running(server)):
            name, tags = run.info.run_name, run.data.tags
            if tags[ID_TAG] in at_work:
                yield f"{name}: is at work here"
                continue
            try:
                status = _status(tags["run_folder"], tags[ID_TAG])
            except (LotlipError, KeyError) as error:
                yield f"{name}: cannot tell what became of it, left as it is: {error}"
                continue
            if not status:
                yield f"{name}: is at work elsewhere"
                continue
            if server.client.get_run(run.info.run_id).info.status != "RUNNING":
                continue  # it has just ended by itself
            server.client.set_tag(run.info.run_id, "ended_by", "lotlip track reconcile")
            server.client.set_terminated(run.info.run_id, status, _last_time_ms(server, run))
            yield f"{name}: {status}, run {run.info.run_id}"


def _running(server: Server) -> Iterator[Any]:
    experiments = [found.experiment_id for found in server.client.search_experiments()]
    page = None
    while page != "":
        found = server.client.search_runs(
            experiments, "attributes.status = 'RUNNING'", page_token=page
        )
        yield from [run for run in found if ID_TAG in run.data.tags]
        page = found.token or ""


def _status(folder_uri: str, journal_name: str) -> str:
    """How a run ended; empty if it hasn't. Raises: LotlipError if its folder can't be read."""
    folder = RunFolder(open_store(folder_uri))
    # On another machine, a folder of this name may be that of another run.
    if folder.read_tracked().get("journal") != journal_name:
        raise DataError(f"{folder_uri} can't be seen from here")
    if is_alive(folder, folder.read_owner()):
        return ""
    return "FINISHED" if folder.read_result() is not None else "KILLED"


def _last_time_ms(server: Server, run: Any) -> int:
    """When it was last heard of."""
    losses = server.client.get_metric_history(run.info.run_id, "train/loss")
    return max((point.timestamp for point in losses), default=int(time.time() * 1000))
