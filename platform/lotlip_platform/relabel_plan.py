"""What a relabelling takes on clusters of several sizes; docs/scaling.md has the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lotlip.data.manifest import read_manifest
from lotlip.errors import ConfigError
from lotlip.train.flops import peak_of_card
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.storage import open_store
from lotlip_platform.tables import aligned

_BF16_BYTES = 2
_HOUR_S = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class CaptionPlanConfig:
    """Machines and captions, as far as time and money depend on them."""

    num_gpus: tuple[int, ...]
    """Sizes of the cluster, each a row of the plan."""
    captions_per_s: float = 0.0
    """Of one GPU, as measured; then all but tokens, data and prices does not matter."""
    gpu: str = ""
    """The card, whose peak `mfu` is a share of: H100, A100 ..."""
    mfu: float = 0.4
    """Share of the card's peak in bf16 that products of matrices reach. An assumption."""
    memory_gb_s: float = 0.0
    """What the card reads from its memory in a second."""
    memory_share: float = 0.6
    """The share of it that is reached. An assumption."""
    parameters: float = 7e9
    """Of the model, all of which each token passes."""
    captions_at_once: int = 64
    """In the making on one GPU: captioner.huggingface.batch_size, or what an engine holds."""
    input_tokens: float = 640.0
    """Of a question, those of the image included: 576 for LLaVA-1.5."""
    output_tokens: float = 150.0
    """Of an answer."""
    again_share: float = 0.05
    """Captions that the audit has asked for again."""
    num_samples: int = 0
    """Of the data set; 0 asks it."""
    sample_bytes: float = 0.0
    """Of a sample in its shard; 0 asks the data set."""
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: that of the config's account."""

    def __post_init__(self) -> None:
        if not self.num_gpus or min(self.num_gpus) < 1:
            raise ConfigError(f"num_gpus={list(self.num_gpus)} must be numbers of 1 or more")
        if self.captions_per_s < 0:
            raise ConfigError(f"captions_per_s={self.captions_per_s} must be 0 or more")
        for name in ("mfu", "memory_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} must be in (0, 1]")
        for name in ("parameters", "captions_at_once", "input_tokens", "output_tokens"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if not self.captions_per_s and not (peak_of_card(self.gpu) and self.memory_gb_s > 0):
            raise ConfigError(
                f"gpu={self.gpu!r} with memory_gb_s={self.memory_gb_s:g} does not tell how fast it "
                "is: give captions_per_s, as lotlip relabel tells it, or both of them"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionLoad:
    """What is the same for clusters of all sizes."""

    num_samples: int
    num_captions: float
    """Asked for, those that are asked for again included."""
    sample_bytes: float
    question_s: float
    """Of a GPU, to read a question; 0 where the speed was measured."""
    answer_s: float
    """Of a GPU, to write an answer, its share where many are written at once."""
    captions_per_s: float
    """Of one GPU."""
    token_cost: float
    """Of all questions and answers, by the prices of the config's account."""


@dataclass(frozen=True, kw_only=True)
class CaptionEstimate:
    """A relabelling on a cluster of one size."""

    num_gpus: int
    captions_per_s: float
    hours: float
    cost: float
    read_mb_s: float
    """From the store: each shard is read when it is asked about, and when it is written."""


def plan_relabel(
    config: RelabelConfig, plan: CaptionPlanConfig
) -> tuple[CaptionLoad, list[CaptionEstimate]]:
    """The load, and an estimate for each size. Raises: DataError if the data set is not there."""
    load = load_of(config, plan)
    return load, [_estimate(config, plan, load, n) for n in sorted(set(plan.num_gpus))]


def load_of(config: RelabelConfig, plan: CaptionPlanConfig) -> CaptionLoad:
    """What model, tokens and data make of it. Raises: DataError."""
    manifest = None
    if not (plan.num_samples and plan.sample_bytes):
        manifest = read_manifest(open_store(config.source))
    num_samples = plan.num_samples or (manifest.num_samples if manifest else 0)
    num_bytes = manifest.num_bytes / manifest.num_samples if manifest else 0.0
    num_captions = num_samples * config.prompts.per_sample * (1 + plan.again_share)
    flops_per_s = peak_of_card(plan.gpu) * plan.mfu
    question_s = answer_s = 0.0
    if not plan.captions_per_s:
        of_token_s = 2 * plan.parameters / flops_per_s
        weights_s = _BF16_BYTES * plan.parameters / (plan.memory_gb_s * 1e9 * plan.memory_share)
        question_s = plan.input_tokens * of_token_s
        answer_s = plan.output_tokens * (of_token_s + weights_s / plan.captions_at_once)
    prices = config.account
    return CaptionLoad(
        num_samples=num_samples,
        num_captions=num_captions,
        sample_bytes=plan.sample_bytes or num_bytes,
        question_s=question_s,
        answer_s=answer_s,
        captions_per_s=plan.captions_per_s or 1 / (question_s + answer_s),
        token_cost=num_captions
        * (
            plan.input_tokens * prices.price_per_million_input_tokens
            + plan.output_tokens * prices.price_per_million_output_tokens
        )
        / _MILLION,
    )


def _estimate(
    config: RelabelConfig, plan: CaptionPlanConfig, load: CaptionLoad, n: int
) -> CaptionEstimate:
    per_s = n * load.captions_per_s
    hours = load.num_captions / per_s / _HOUR_S
    price = plan.price_per_gpu_hour or config.account.price_per_gpu_hour
    samples_per_s = load.num_samples / (hours * _HOUR_S)
    return CaptionEstimate(
        num_gpus=n,
        captions_per_s=per_s,
        hours=hours,
        cost=n * hours * price + load.token_cost,
        read_mb_s=2 * samples_per_s * load.sample_bytes / 1e6,
    )


def table(load: CaptionLoad, estimates: Sequence[CaptionEstimate]) -> str:
    """For a terminal."""
    lines = [
        f"{load.num_captions:,.0f} captions of {load.num_samples:,} images of "
        f"{load.sample_bytes / 1000:,.1f} kB; {load.captions_per_s:,.1f} captions/s a GPU"
    ]
    if load.question_s:
        lines[0] += (
            f", reckoned: {1000 * load.question_s:.1f} ms for a question, "
            f"{1000 * load.answer_s:.1f} ms for an answer"
        )
    head = ["GPUs", "captions/s", "hours", "cost", "cost of a million", "store, MB/s"]
    rows = [
        [
            str(e.num_gpus),
            f"{e.captions_per_s:,.0f}",
            f"{e.hours:,.1f}",
            f"{e.cost:,.0f}" if e.cost else "-",
            f"{e.cost / load.num_captions * _MILLION:,.1f}" if e.cost else "-",
            f"{e.read_mb_s:,.1f}",
        ]
        for e in estimates
    ]
    return "\n".join([*lines, "", aligned([head, *rows])])
