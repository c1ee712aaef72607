"""The questions about one shard: all of them, then what the audit has asked again.

Answers are in the store before the next is asked, so that at most those in flight are asked for
twice, whatever is killed.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from lotlip.data.manifest import Shard
from lotlip.data.sample import Sample, from_members
from lotlip.data.shards import DamagedShardError, RawSample, read_shard
from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.images import decode
from lotlip.relabel.asking import Answer, Captioner, Place, Request, make_request
from lotlip.relabel.audit import faults, normalised, verdict
from lotlip_platform.caption_fit import CaptionFit
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_folder import AnswerLog, Tally
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import open_store

Tell = Callable[[dict[str, Any]], None]
"""Gets what to add to the account: a tally's numbers, answers known from before, and errors."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is the same for all shards."""

    config: RelabelConfig
    folder: str
    """The run folder."""
    revision: str
    """Of the model."""
    token: str = ""
    """Of the process that has the run; empty: nobody looks."""

    def check_owner(self) -> None:
        """Raises: CheckpointError if the run is another process's now."""
        if self.token:
            RunFolder(open_store(self.folder)).check_owner(self.token)


def source_samples(source: Store, shard: Shard) -> Iterator[tuple[int, RawSample, Sample | str]]:
    """Number, members and sample of each, in their order; for one that can't be used, the reason.

    Of a sample that can't even be read there are no members.
    """
    for index, raw in enumerate(read_shard(source, shard)):
        if isinstance(raw, DamagedShardError):
            yield index, {}, str(raw)
            continue
        try:
            yield index, raw, from_members(raw)
        except DataError as error:
            yield index, {}, str(error)


class Ledger:
    """What has become of each sample and each caption of a shard."""

    def __init__(self) -> None:
        self.chosen: dict[tuple[int, int], Answer] = {}
        """By sample and draw."""
        self.dropped: dict[tuple[int, int], dict[str, Any]] = {}
        self.unusable: dict[int, dict[str, Any]] = {}
        self.failed: Counter[str] = Counter()
        self.tally = Tally()


class Asking:
    """The rounds of questions about a shard: all of them, then what the audit has asked again."""

    def __init__(
        self, work: Work, shard: Shard, captioner: Captioner, log: AnswerLog, tell: Tell
    ) -> None:
        self._work, self._shard, self._captioner = work, shard, captioner
        self._log, self._tell = log, tell
        self._source = open_store(work.config.source)
        self._answers = log.read()
        tell({"num_known": len(self._answers)})
        self._shorts: dict[int, str] = {}
        self._num_errors = 0
        self._samples_with: defaultdict[str, set[int]] = defaultdict(set)
        """By what they say."""
        self.ledger = Ledger()

    def ask_all(self) -> None:
        """Raises: DataError if more captions can't be kept than the config allows."""
        audit = self._work.config.audit
        began = time.perf_counter()
        wanted: set[tuple[int, int]] | None = None
        for ask in range(audit.max_asks):
            self._captioner.answer(self._batches(ask, wanted), self._keep)
            wanted = self._judge(ask, wanted)
            if not wanted:
                break
        took = time.perf_counter() - began
        told = Tally(worker_s=took)
        for answer in self._answers.values():
            told += answer_tally(answer)
        self.ledger.tally = told
        self._check_dropped(len(self.ledger.dropped), "were dropped")

    def unanswered(self, ask: int) -> Iterator[Request]:
        """Of a round, what nobody answered yet; what is left of earlier ones stays so."""
        wanted: set[tuple[int, int]] | None = None
        for earlier in range(ask):
            self._captioner.answer(self._batches(earlier, wanted), self._keep)
            wanted = self._judge(earlier, wanted)
            if not wanted:
                return
        for request in self._requests(ask, wanted):
            if request.place not in self._answers:
                yield request

    def _batches(self, ask: int, wanted: set[tuple[int, int]] | None) -> Iterator[list[Request]]:
        """Those of a round that aren't answered yet, in batches of the same requests always: what
        is answered to one may depend, in the last bit, on those beside it."""
        batch: list[Request] = []
        for request in self._requests(ask, wanted):
            batch.append(request)
            if len(batch) == self._captioner.batch_size:
                if not self._is_answered(batch):
                    yield batch
                batch = []
        if batch and not self._is_answered(batch):
            yield batch

    def _is_answered(self, batch: Sequence[Request]) -> bool:
        return all(request.place in self._answers for request in batch)

    def _requests(self, ask: int, wanted: set[tuple[int, int]] | None) -> Iterator[Request]:
        prompts = self._work.config.prompts
        for index, _, sample in source_samples(self._source, self._shard):
            draws = [
                draw
                for draw in range(prompts.per_sample)
                if wanted is None or (index, draw) in wanted
            ]
            if wanted is None and (wrong := problem(sample)):
                key = "" if isinstance(sample, str) else sample.key
                self.ledger.unusable[index] = self._record(index, key, [wrong])
                continue
            if isinstance(sample, str):
                continue
            self._shorts[index] = sample.short
            for draw in draws:
                place = Place(ask, index, draw)
                yield make_request(sample, self._shard.name, place, prompts)

    def _keep(self, answers: list[Answer]) -> Future[None]:
        # Refusals were paid for, too; what another attempt may mend is asked again some day.
        given = [answer for answer in answers if not answer.error or answer.is_final]
        for answer in answers:
            self._answers[answer.place] = answer
            self._tell({**vars(answer_tally(answer)), "num_errors": int(bool(answer.error))})
        self._num_errors += sum(bool(answer.error) for answer in answers)
        self._check_dropped(self._num_errors, "got no answer")
        return self._log.keep(given)

    def _judge(self, ask: int, wanted: set[tuple[int, int]] | None) -> set[tuple[int, int]]:
        """Choose, or drop, what was answered in a round; what is to be asked for again."""
        audit, again = self._work.config.audit, set()
        answers = {
            place: answer
            for place, answer in sorted(self._answers.items())
            if place.ask == ask
            and (wanted is None or (place.sample, place.draw) in wanted)
            and place.sample not in self.ledger.unusable
        }
        unfit = self._unfit(answers)
        for place, answer in answers.items():
            which = (place.sample, place.draw)
            if answer.error:
                self.ledger.failed["no answer"] += 1
                self._drop(answer, [f"no answer: {answer.error}"])
                continue
            short = self._shorts[place.sample]
            failed = faults(answer.text, short, audit, is_whole=answer.is_whole)
            if place in unfit:
                failed.append("similarity")
            if verdict(failed, audit) == "keep" and self._is_double(answer):
                failed.append("duplicate")
            self.ledger.failed.update(failed)
            action = verdict(failed, audit)
            if action == "keep":
                self.ledger.chosen[which] = answer
                self._samples_with[normalised(answer.text)].add(place.sample)
            elif action == "again" and ask + 1 < audit.max_asks:
                again.add(which)
            else:
                self._drop(answer, failed)
        return again

    def _is_double(self, answer: Answer) -> bool:
        """Whether as many other samples as may be have this very caption already."""
        most = self._work.config.audit.max_duplicates
        others = self._samples_with[normalised(answer.text)] - {answer.place.sample}
        return 0 < most <= len(others)

    def _unfit(self, answers: Mapping[Place, Answer]) -> set[Place]:
        """Whose captions a model, if there is one, finds too far from their images."""
        audit = self._work.config.audit
        if not audit.model:
            return set()
        given: dict[int, list[Answer]] = {}
        for place, answer in answers.items():
            if not answer.error:
                given.setdefault(place.sample, []).append(answer)
        places: list[Place] = []

        def pairs() -> Iterator[tuple[bytes, str]]:
            for index, _, sample in source_samples(self._source, self._shard):
                for answer in given.get(index, ()):
                    assert not isinstance(sample, str), "nobody was asked about it"
                    places.append(answer.place)
                    yield sample.image, answer.text

        found = caption_fit(audit.model).similarities(pairs())
        return {p for p, one in zip(places, found, strict=True) if one < audit.min_similarity}

    def _drop(self, answer: Answer, reasons: Sequence[str]) -> None:
        place = answer.place
        record = self._record(place.sample, "", reasons)
        record |= {"draw": place.draw, "prompt": answer.prompt, "text": answer.text}
        self.ledger.dropped[place.sample, place.draw] = record

    def _record(self, index: int, key: str, reasons: Sequence[str]) -> dict[str, Any]:
        record = {"shard": self._shard.name, "index": index, "reasons": list(reasons)}
        return {**record, **({"key": key} if key else {})}

    def _check_dropped(self, number: int, what: str) -> None:
        """Raises: DataError, before more is spent on captions that won't be kept."""
        config = self._work.config
        most = config.audit.max_dropped_share
        asked = self._shard.num_samples * config.prompts.per_sample
        if number <= max(1.0, most * asked):
            return
        reasons = [one["reasons"][0] for one in self.ledger.dropped.values()]
        errors = [answer.error for answer in self._answers.values() if answer.error]
        common = Counter(reasons or errors).most_common(1)
        raise DataError(
            f"{self._source.uri}/{self._shard.name}: {number} of {asked} captions {what}, more "
            f"than audit.max_dropped_share={most:g} allows; most often: {common[0][0]} "
            f"({common[0][1]} times). Look at the captions (lotlip relabel --try 4), and change "
            "the prompts, the audit or the captioner under another name=..., or allow more"
        )


@functools.lru_cache(maxsize=1)
def caption_fit(model: str) -> CaptionFit:
    """Of an export folder; a worker keeps the one it uses."""
    return CaptionFit(model)


def problem(sample: Sample | str) -> str:
    """Why nobody can be asked about a sample; empty if one can."""
    if isinstance(sample, str):
        return sample
    try:
        decode(sample.image)
    except DataError as error:
        return str(error)
    return ""


def answer_tally(answer: Answer) -> Tally:
    return Tally(
        num_answers=int(not answer.error),
        num_attempts=answer.num_attempts,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
    )
