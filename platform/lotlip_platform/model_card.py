"""The card of a registered model: what a reviewer wants to know, on its page in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice

from lotlip.data.manifest import Manifest
from lotlip.data.sample import from_members
from lotlip.data.shards import DamagedShardError, read_shard
from lotlip.errors import DataError
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.evaluate import in_percent
from lotlip_platform.storage import open_store
from lotlip_platform.train_config import TrainConfig

_NUM_LICENCES = 100  # samples that are asked for theirs
_TOLD_FIRST = (
    "long_text_to_image_r1",
    "long_image_to_text_r1",
    "short_text_to_image_r1",
    "short_image_to_text_r1",
    "class_zero_shot_top1",
    "colour_class_zero_shot_top1",
)


def model_card(config: TrainConfig, manifest: Manifest, metrics: Mapping[str, Interval]) -> str:
    """The card as Markdown.

    Args:
        manifest: of the training data.
        metrics: of the evaluation behind the training; empty if there was none.
    """
    return "\n\n".join(
        (
            _what_it_is(config),
            "## Data and captions",
            _table(_data_rows(config, manifest, _licences(config.data.train, manifest))),
            "## Metrics",
            _metrics(config, metrics),
            "## Limits",
            "\n".join(f"- {limit}" for limit in _limits(config)),
        )
    )


def _what_it_is(config: TrainConfig) -> str:
    text, image = config.model.text, config.model.image
    corner = (
        f"{text.num_corner_tokens} corner tokens"
        f"{'' if text.corner_mask else ' without their attention mask'}"
        if text.num_corner_tokens
        else "no corner tokens"
    )
    tower = "locked" if image.locked_layers == -1 else "trained"
    return (
        f"A dual encoder of images and long texts (LoTLIP, Wu et al., NeurIPS 2024) with {corner}. "
        f"Image tower: vision transformer, {image.num_layers} layers of {image.width}, "
        f"{image.image_size_px} px, {tower}{_from(image.pretrained)}. Text tower: BERT, "
        f"{text.num_layers} layers of {text.width}, up to {text.context_length} tokens"
        f"{_from(text.pretrained)}. Embeddings have {config.model.embed_dim} values and length 1; "
        "their dot product is the similarity."
    )


def _from(pretrained: str) -> str:
    return f", from `{pretrained}`" if pretrained else ""


def _data_rows(
    config: TrainConfig, manifest: Manifest, licences: Sequence[str]
) -> list[tuple[str, str]]:
    captions = config.captions
    sentences = captions.sentences_per_sub_caption
    drawn = "all of it" if sentences == 0 else f"{sentences} sentences each"
    kinds = ["the short caption"] if captions.short_caption else []
    if captions.num_sub_captions:
        kinds.append(f"{captions.num_sub_captions} from the long caption, {drawn}")
    lengths = [
        f"{name}: {stated['mean_words']:.0f} words" for name, stated in manifest.captions.items()
    ]
    return [
        ("Data", f"`{config.data.train}`, {manifest.num_samples:,} samples"),
        ("Manifest", f"`{manifest.digest}`"),
        (
            f"Licence of the data (its first {_NUM_LICENCES} samples)",
            ", ".join(licences) or "**not stated there**: ask its owner",
        ),
        ("Captions in a step", " + ".join(kinds)),
        ("Captioners", ", ".join(captions.captioners) or "all that the data has"),
        ("Mean length", "; ".join(lengths)),
        ("Samples seen", f"{config.train.num_samples:,}, {config.train.global_batch} a step"),
        ("Seed", str(config.train.seed)),
    ]


def _licences(uri: str, manifest: Manifest) -> list[str]:
    """What the first samples state, as far as they can be read."""
    found = set()
    with suppress(DataError):
        for raw in islice(read_shard(open_store(uri), manifest.shards[0]), _NUM_LICENCES):
            with suppress(DataError):
                if not isinstance(raw, DamagedShardError):
                    found.add(from_members(raw).licence)
    return sorted(found - {""})


def _metrics(config: TrainConfig, metrics: Mapping[str, Interval]) -> str:
    if not metrics:
        return "Not evaluated: the run had no `eval.data`."
    names = [name for name in _TOLD_FIRST if name in metrics]
    rows = [(f"`{name}`", in_percent(metrics[name])) for name in names or metrics]
    asked = config.eval
    size = f"the first {asked.num_samples:,} samples" if asked.num_samples else "all samples"
    return (
        f"Benchmark `{asked.benchmark}` on {size} of `{asked.data}`, in per cent, with 95% "
        f"bootstrap intervals over its items.\n\n{_table(rows)}"
    )


def _limits(config: TrainConfig) -> list[str]:
    text, image = config.model.text, config.model.image
    limits = [
        f"A text is read up to {text.context_length} tokens; what comes behind is left out.",
        f"An image is cropped to its central square and scaled to {image.image_size_px} px: what "
        "is at its edges or tiny is not seen.",
        "It knows pictures and words like those of its data; elsewhere the figures above don't "
        "hold, and they depend on the number of items searched among.",
        "Similarities rank; they are no probabilities, and a threshold on them must be measured.",
        "Long captions written by machines name things that aren't there; the model learns those, "
        "too. Bias, safety and other languages than the captions' were not evaluated.",
    ]
    if config.eval.benchmark == "scenes":
        limits.insert(0, "Its data are procedural drawings: it is of no use for photographs.")
    return limits


def _table(rows: Sequence[tuple[str, str]]) -> str:
    # MLflow's page leaves no room between columns.
    lines = [f"| {left} | &nbsp; {right} |" for left, right in rows]
    return "\n".join(("| | |", "|---|---|", *lines))
