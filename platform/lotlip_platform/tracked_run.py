"""A run as the training process sees it: what it tells goes to the journal, and never waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lotlip.errors import TrackingError
from lotlip_platform.journal import Journal, Sent
from lotlip_platform.sender_process import SenderProcess


class TrackedRun:
    """One MLflow run, from `open_run` to its end."""

    def __init__(
        self, journal: Journal, sender: SenderProcess | None, note: Callable[[str], None]
    ) -> None:
        """Without a `sender` of its own, that of the parent run sends it."""
        self._journal, self._sender, self._note = journal, sender, note
        self._told = Sent(num_refused=journal.sent().num_refused)
        self._told_trouble = ""
        self._is_losing = False

    def log_metrics(self, values: Mapping[str, float], step: int, **time_ms: int) -> None:
        """Names are as in `train/loss`; `time_ms` is when they were measured, if not now."""
        self.append("metrics", step=step, values=dict(values), **time_ms)

    def catch_up(self, measured: Iterable[Mapping[str, Any]]) -> None:
        """Log metrics of a run that was on another machine before, as far as they aren't here."""
        entries = (entry for entry, _ in self._journal.read(0) if entry["kind"] == "metrics")
        here = {(entry["step"], entry["time_ms"]) for entry in entries}
        for one in measured:
            if (one["step"], one["time_ms"]) not in here:
                self.log_metrics(one["values"], one["step"], time_ms=one["time_ms"])

    def log_file(self, name: str, content: bytes) -> None:
        """Add an artifact such as `figures/curves.png`."""
        try:
            kept = self._journal.keep(content)
        except OSError as error:
            self._lose(error)
        else:
            self.append("file", name=name, content=kept)

    def log_dataset(self, uri: str, *, digest: str, context: str) -> None:
        """Record which data a run read, as MLflow's lineage."""
        self.append("dataset", uri=uri, digest=digest, context=context)

    def tag(self, values: Mapping[str, str]) -> None:
        self.append("tags", values=dict(values))

    def register(self, model: str, name: str, card: str) -> None:
        """Log the export folder at the address `model`, and register it under `name`."""
        self.append("register", model=model, name=name, card=card)

    def append(self, kind: str, **content: Any) -> None:
        """Add an entry to the journal. A full disk doesn't end training: it is lost, and told."""
        try:
            self._journal.append(kind, **content)
        except OSError as error:
            self._lose(error)

    def attend(self) -> None:
        """See to it that the journal is sent, and tell what has become of that."""
        if self._sender is not None:
            self._sender.revive()
            self._tell_news(self._sender.trouble)

    def finish(self) -> None:
        """Wait until all is sent, but not for a server that is away."""
        if self._sender is None:
            return
        is_sent = self._sender.finish()
        self._tell_news(self._sender.trouble)
        if not is_sent:
            self._note(
                "not all of the run is in MLflow yet: that is tried for ten more minutes, and "
                "whenever you run: lotlip track sync"
            )

    def _tell_news(self, trouble: str) -> None:
        sent, told = self._journal.sent(), self._told
        self._told = sent
        if sent.run_id != told.run_id:
            self._note(f"MLflow run {sent.run_id}")
        told_trouble, self._told_trouble = self._told_trouble, trouble
        if trouble and not told_trouble:
            self._note(
                f"MLflow doesn't take what is logged ({trouble}): the run goes on, and "
                "that is kept here to be sent later"
            )
        if told_trouble and not trouble:
            self._note("MLflow takes what is logged again")
        if sent.num_refused > told.num_refused:
            self._note(f"MLflow refused {sent.num_refused} entries, such as: {sent.refused[0]}")

    def _lose(self, error: OSError) -> None:
        if not self._is_losing:
            self._is_losing = True
            where = self._journal.folder
            self._note(f"cannot write to {where} ({error.strerror}): what is logged is lost")


@contextmanager
def open_run(
    journal: Journal,
    *,
    uri: str,
    life: int,
    run_id: str = "",
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    note: Callable[[str], None],
    parent: str = "",
) -> Iterator[TrackedRun]:
    """A run in MLflow, at the server `uri`, for the length of the block. One journal is one run.

    It is below the run of the journal `parent`, which sends it, see `journal.family`.

    It continues the run `run_id`, or the one that the journal began, if there is such a one. `life`
    counts the training processes of the run, on all machines.

    It ends FINISHED, FAILED if the block raises, or KILLED if it was interrupted, and KILLED also
    if this process is killed outright. Raises: TrackingError if another process on this machine has
    it open, or nothing can be written here.
    """
    with journal.owned():
        try:
            journal.append(
                "open",
                life=life,
                uri=uri,
                run_id=run_id,
                experiment=experiment,
                name=name,
                params={key: str(value) for key, value in params.items()},
                tags=dict(tags),
                parent=parent,
            )
        except OSError as error:
            raise TrackingError(f"cannot write to {journal.folder}: {error.strerror}") from error
        sender = None if parent else SenderProcess(journal, life)
        run = TrackedRun(journal, sender, note)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.append("end", status=status, life=life)
            run.finish()
