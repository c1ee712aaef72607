"""One shard of a relabelling: asked about, audited, written, committed.

Whatever is killed at whatever time: a shard is written from its answers alone, and belongs to the
data set when its entry is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace

from lotlip.data.manifest import Shard
from lotlip.data.sample import Sample
from lotlip.data.shards import CaptionCount, RawSample, write_members
from lotlip.errors import DataError
from lotlip.relabel.asking import Captioner
from lotlip_platform.relabel_asking import Asking, Ledger, Tell, Work, source_samples
from lotlip_platform.relabel_config import settings
from lotlip_platform.relabel_folder import RelabelFolder
from lotlip_platform.shard_ledger import Entry
from lotlip_platform.storage import open_store


def relabel_shard(work: Work, shard: Shard, captioner: Captioner, tell: Tell) -> Entry:
    """Caption a shard and commit it. Raises: LotlipError."""
    folder = RelabelFolder(open_store(work.folder))
    if (done := folder.ledger.entry(shard.name)) is not None:
        folder.forget_answers(shard.name)  # a worker that was killed behind its commit
        return done
    with closing(folder.answers(shard.name)) as log:
        asking = Asking(work, shard, captioner, log, tell)
        asking.ask_all()
    work.check_owner()  # or a run that another process has taken over would write, too
    source, target = open_store(work.config.source), open_store(work.config.target)
    count, ledger = CaptionCount(), asking.ledger
    written = write_members(
        target, shard.name, _labelled(work, source_samples(source, shard), ledger, count)
    )
    tally = replace(
        ledger.tally,
        num_samples=written.num_samples,
        num_unusable=len(ledger.unusable),
        num_captions=len(ledger.chosen),
        num_dropped=len(ledger.dropped),
    )
    asked = (shard.num_samples - tally.num_unusable) * work.config.prompts.per_sample
    if tally.num_captions + tally.num_dropped != asked:
        raise DataError(
            f"{shard.name}: of {asked} captions {tally.num_captions} are kept and "
            f"{tally.num_dropped} dropped; something was lost, please report this"
        )
    work.check_owner()
    entry = Entry(
        shard=written,
        captions=count.summary(),
        counts=asdict(tally),
        reasons=dict(sorted(ledger.failed.items())),
        revision=work.revision,
    )
    folder.commit(entry, [*ledger.unusable.values(), *ledger.dropped.values()])
    return entry


def _labelled(
    work: Work,
    samples: Iterator[tuple[int, RawSample, Sample | str]],
    ledger: Ledger,
    count: CaptionCount,
) -> Iterator[RawSample]:
    """The members of the samples with their new captions."""
    made_by, names = settings(work.config, work.revision), work.config.captioners
    for index, raw, sample in samples:
        if isinstance(sample, str):
            continue
        text = json.loads(raw["json"])
        for draw, name in enumerate(names):
            answer = ledger.chosen.get((index, draw))
            if answer is not None:
                text.setdefault("long", {})[name] = answer.text
                made = text.get("captioned_by")
                how = {"prompt": answer.prompt, **made_by}
                text["captioned_by"] = {**(made if isinstance(made, dict) else {}), name: how}
        count.add(replace(sample, long=text.get("long", {})))
        content = json.dumps(text, ensure_ascii=False, sort_keys=True)
        members = {name: part for name, part in raw.items() if not name.startswith("__")}
        yield {
            **members,
            "__key__": raw["__key__"],
            "json": content.encode(errors="surrogatepass"),
        }
