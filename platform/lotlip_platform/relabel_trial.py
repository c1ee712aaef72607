"""A few captions before all of them: `lotlip relabel --try`."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.errors import DataError
from lotlip.evaluate.figures import contact_sheet
from lotlip.images import decode
from lotlip.relabel.asking import Answer, Place, make_request
from lotlip.relabel.audit import faults
from lotlip_platform.captioners import captioner_of, check_captioner
from lotlip_platform.dataset_views import COLUMNS, trimmed
from lotlip_platform.relabel_asking import problem, source_samples
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.storage import open_store


def try_out(config: RelabelConfig, *, num_samples: int) -> bytes:
    """A contact sheet of the first images with what the captioner says of them, as a PNG.

    Below each caption stands what the audit has against it. Nothing is written.

    Raises: LotlipError.
    """
    store = open_store(config.source)
    manifest = read_manifest(store)
    check_captioner(config)
    captioner, shard = captioner_of(config), manifest.shards[0]
    found = (
        (i, s)
        for i, _, s in source_samples(store, shard)
        if isinstance(s, Sample) and not problem(s)
    )
    samples = dict(itertools.islice(found, num_samples))
    requests = [
        make_request(sample, shard.name, Place(0, index, draw), config.prompts)
        for index, sample in samples.items()
        for draw in range(config.prompts.per_sample)
    ]
    answers: dict[Place, Answer] = {}

    def keep(given: list[Answer]) -> Future[None]:
        answers.update((answer.place, answer) for answer in given)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    size = captioner.batch_size
    captioner.answer((requests[i : i + size] for i in range(0, len(requests), size)), keep)
    images, titles = [], []
    for index, sample in samples.items():
        try:
            images.append(decode(sample.image))
        except DataError as error:
            raise DataError(f"{store.uri}/{shard.name}: sample {sample.key}: {error}") from error
        told = [answers[Place(0, index, draw)] for draw in range(config.prompts.per_sample)]
        said = (_title(one, sample, config) for one in told)
        titles.append("\n\n".join([trimmed(sample.short), *said]))
    heading = f"{config.captioner.name} on {store.uri}: {len(samples)} images"
    return contact_sheet(images, titles, columns=COLUMNS, heading=heading)


def _title(answer: Answer, sample: Sample, config: RelabelConfig) -> str:
    if answer.error:
        return f"{answer.prompt}: no answer: {answer.error}"
    failed = faults(answer.text, sample.short, config.audit, is_whole=answer.is_whole)
    against = f"\n[{', '.join(failed)}]" if failed else ""
    return trimmed(f"{answer.prompt}: {answer.text}") + against
