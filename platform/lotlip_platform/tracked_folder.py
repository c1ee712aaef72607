"""The MLflow run that belongs to a folder in the store: of a training run, or of a sweep."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lotlip.errors import LotlipError
from lotlip_platform.journal import family, journal
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.tracked_run import TrackedRun, open_run


@contextmanager
def tracked_folder(
    folder: RunFolder,
    *,
    uri: str,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    note: Callable[[str], None],
    parent: str = "",
) -> Iterator[TrackedRun]:
    """The folder's run at the server `uri`, the same one whenever it is opened.

    `parent` is the journal of the run that it is below. The folder keeps what leads to the run;
    whether it has `ended` there is kept, too. Raises: TrackingError.
    """
    known: dict[str, Any] = folder.read_tracked()
    if known.get("tracking_uri") != uri:
        name_of_journal = uuid.uuid4().hex
        known = {"journal": f"{parent}.{name_of_journal}" if parent else name_of_journal}
        known["tracking_uri"] = uri
    all_sent = known.pop("all_sent", False)
    known.pop("ended", None)
    known["life"] = known.get("life", 0) + 1
    folder.write_tracked(known)
    kept = journal(known["journal"])
    try:
        with open_run(
            kept,
            uri=uri,
            life=known["life"],
            run_id=known.get("run_id", ""),
            experiment=experiment,
            name=name,
            params=params,
            tags=tags,
            note=note,
            parent=parent,
        ) as tracked:
            if not all_sent:
                tracked.catch_up(folder.read_metrics())
            yield tracked
            known["ended"] = True
    finally:
        sent, all_sent = kept.sent(), kept.is_sent
        became = {"run_id": sent.run_id, "model_uri": sent.model_uri, "all_sent": all_sent}
        with contextlib.suppress(LotlipError):  # a store that is away: how the run ended counts
            if folder.read_tracked().get("life") == known["life"]:  # nobody has taken over
                became = {name: value for name, value in became.items() if value}
                folder.write_tracked({**known, **became})
        for of_trial in family(kept)[1:]:
            of_trial.remove_if_sent()
        if all_sent and family(kept) == [kept]:  # trials that aren't sent yet need it
            kept.remove_if_sent()
