"""`lotlip plan`: what a training run takes on clusters of several sizes, before anything is rented.

All of it is arithmetic over the config; docs/scaling.md has the formulas with a case reckoned by
hand. Bytes of a step are those that one GPU sends (and receives), in rings: a sum over n GPUs of S
bytes takes 2 S (n - 1) / n, collecting what all have takes S (n - 1) / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lotlip.data.manifest import Manifest, read_manifest
from lotlip.errors import ConfigError
from lotlip.model import LoTLIP
from lotlip.train.flops import image_flops, step_flops
from lotlip_platform.plan_config import PlanConfig
from lotlip_platform.storage import open_store
from lotlip_platform.train_config import TrainConfig

_FP32, _MOMENTS = 4, 2
_TOKENS_PER_WORD = 1.3
_CONTROL_TOKENS = 2
"""[CLS] and [SEP]."""
_FEATURE_SAMPLE_BYTES = 2560
"""Of a sample in a shard of features, beside the feature: two heads, the captions, padding."""
_BACKWARD = 2 / 3
"""Of the time the towers take: sums of gradients pass beside it."""
_PRODUCTS_OF_LOGITS = 4
"""Forward, once more for the gradient, and the gradients of both sides."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is the same for clusters of all sizes."""

    num_steps: int
    num_samples: int
    """Of the data set."""
    num_shards: int
    sample_bytes: float
    num_parameters: int
    num_trained: int
    sample_flops: float
    num_texts: int
    """Text features of an image, corner tokens' included."""
    features_flops: float
    """Of the features of a locked image tower, computed once for all runs; 0 without them."""

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, and Adam's moments of what is trained, in fp32."""
        return _FP32 * (self.num_parameters + _MOMENTS * self.num_trained)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run on a cluster of one size."""

    num_gpus: int
    problem: str = ""
    """Why the config can't be trained by so many; nothing else is told then."""
    images_per_gpu: int = 0
    """Of a step."""
    compute_s: float = 0.0
    """Of a step: towers and loss."""
    gather_s: float = 0.0
    """Of a step: text features of all, their gradients and sums, which nothing passes beside."""
    reduce_s: float = 0.0
    """Of a step: the sum of gradients, most of it beside the backward pass."""
    alone_s: float = 0.0
    """Of a step, if nobody else was to be heard: compute, and what each step takes besides."""
    step_s: float = 0.0
    samples_per_s: float = 0.0
    efficiency: float = 0.0
    """Samples a second, as a share of so many times those of one GPU with as many images."""
    hours: float = 0.0
    """Without failures."""
    num_failures: float = 0.0
    """Expected."""
    goodput: float = 0.0
    """Share of the time in which training goes on."""
    total_hours: float = 0.0
    """With failures."""
    cost: float = 0.0
    gathered_bytes: float = 0.0
    """Of a step, by each GPU."""
    reduced_bytes: float = 0.0
    """Of a step, by each GPU."""
    read_bytes_per_s: float = 0.0
    """From the store, by all."""
    requests_per_s: float = 0.0
    """To the store, by all: a look and a read for each shard, and each part of one."""


def plan(config: TrainConfig, cluster: PlanConfig) -> tuple[Load, list[Estimate]]:
    """The load of a run, and an estimate for each size of the cluster.

    Raises: ConfigError, DataError if what isn't given is to be asked of the data set.
    """
    load = load_of(config, cluster)
    return load, [estimate(config, cluster, load, n) for n in sorted(set(cluster.num_gpus))]


def load_of(config: TrainConfig, cluster: PlanConfig) -> Load:
    """What the data set and the model make of it."""
    is_asked = not _is_all_given(config, cluster)
    manifest = read_manifest(open_store(config.data.train)) if is_asked else None
    with torch.device("meta"):
        model = LoTLIP(config.model)
    text, captions = config.model.text, config.captions
    corners = text.num_corner_tokens * captions.num_sub_captions
    num_texts = captions.num_captions + corners
    short, long = _tokens(config, cluster, manifest)
    lengths = [short] * captions.short_caption + [long] * captions.num_sub_captions
    num_samples = cluster.num_samples or (manifest.num_samples if manifest else 0)
    return Load(
        num_steps=config.train.num_steps,
        num_samples=num_samples,
        num_shards=cluster.num_shards or (len(manifest.shards) if manifest else 0),
        sample_bytes=cluster.sample_bytes or _sample_bytes(config, manifest),
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        sample_flops=step_flops(
            config.model,
            torch.tensor([lengths]),
            short_first=captions.short_caption,
            pixels=not config.data.features,
        ),
        num_texts=num_texts,
        features_flops=num_samples * image_flops(config.model.image) * bool(config.data.features),
    )


def estimate(config: TrainConfig, cluster: PlanConfig, load: Load, n: int) -> Estimate:
    """A run on `n` GPUs."""
    if problem := _problem(config, cluster, n):
        return Estimate(num_gpus=n, problem=problem)
    batch, width = config.train.global_batch, config.model.embed_dim
    own = batch // n
    compute_s = _compute_s(cluster, load, own) + _loss_s(cluster, load, batch, width, own)
    others = (n - 1) / n
    # Forward collects text features, backward sums their gradients; and the loss sums a largest
    # logit in fp32 and a sum of exponentials in fp64 for each of them.
    gathered = others * batch * load.num_texts * (3 * _FP32 * width + 2 * 4 + 2 * 8)
    reduced = 2 * others * _FP32 * load.num_trained
    gbit_s = cluster.link_gbit_s if n <= cluster.gpus_per_host else cluster.host_gbit_s
    bytes_per_s = gbit_s * 1e9 / 8
    gather_s, reduce_s = gathered / bytes_per_s, reduced / bytes_per_s
    alone_s = compute_s + cluster.step_overhead_ms / 1000
    step_s = alone_s + gather_s + max(0.0, reduce_s - _BACKWARD * compute_s)
    hours = load.num_steps * step_s / 3600
    rate = n / cluster.gpu_hours_per_failure
    lost_h = (cluster.restart_s + config.train.save_every_steps * step_s / 2) / 3600
    total_hours = hours * (1 + rate * lost_h)
    samples_per_s = batch / step_s
    spans = load.num_shards + config.data.order.num_streams
    return Estimate(
        num_gpus=n,
        images_per_gpu=own,
        compute_s=compute_s,
        gather_s=gather_s,
        reduce_s=reduce_s,
        alone_s=alone_s,
        step_s=step_s,
        samples_per_s=samples_per_s,
        efficiency=_compute_s(cluster, load, batch) / (n * step_s),
        hours=hours,
        num_failures=rate * total_hours,
        goodput=hours / total_hours,
        total_hours=total_hours,
        cost=n * total_hours * cluster.price_per_gpu_hour,
        gathered_bytes=gathered,
        reduced_bytes=reduced,
        read_bytes_per_s=samples_per_s * load.sample_bytes,
        requests_per_s=2 * spans * samples_per_s / load.num_samples,
    )


def stops_at(estimates: list[Estimate]) -> int:
    """The size beyond which twice the GPUs are less than 1.5 times as fast; 0 if none told is."""
    speeds = {e.num_gpus: e.samples_per_s for e in estimates if not e.problem}
    ends = [n for n in speeds if 2 * n in speeds and speeds[2 * n] < 1.5 * speeds[n]]
    return min(ends, default=0)


def _problem(config: TrainConfig, cluster: PlanConfig, n: int) -> str:
    for key, value in (
        ("train.global_batch", config.train.global_batch),
        ("data.order.num_streams", config.data.order.num_streams),
    ):
        if value % n:
            return f"{key}={value} is not a multiple of {n}"
    if n > cluster.gpus_per_host and n % cluster.gpus_per_host:
        return f"{n} GPUs are no whole hosts of {cluster.gpus_per_host}"
    return ""


def _compute_s(cluster: PlanConfig, load: Load, images: int) -> float:
    """Of the towers."""
    if cluster.samples_per_s:
        return images / cluster.samples_per_s
    return images * load.sample_flops / cluster.flops_per_s


def _loss_s(cluster: PlanConfig, load: Load, batch: int, width: int, own: int) -> float:
    """Of the logits of own images and all texts; what was measured has them in it already."""
    if cluster.samples_per_s:
        return 0.0
    flops = _PRODUCTS_OF_LOGITS * 2 * width * load.num_texts * batch * own
    return flops / cluster.flops_per_s


def _is_all_given(config: TrainConfig, cluster: PlanConfig) -> bool:
    """Whether nothing is to be asked of the data set."""
    return bool(
        cluster.num_samples
        and cluster.num_shards
        and (cluster.sample_bytes or config.data.features)
        and (cluster.short_tokens or not config.captions.short_caption)
        and (cluster.long_tokens or not config.captions.num_sub_captions)
    )


def _sample_bytes(config: TrainConfig, manifest: Manifest | None) -> float:
    if config.data.features:
        return _FP32 * config.model.image.width + _FEATURE_SAMPLE_BYTES
    assert manifest is not None, "asked for where nothing is given"
    return manifest.num_bytes / manifest.num_samples


def _tokens(
    config: TrainConfig, cluster: PlanConfig, manifest: Manifest | None
) -> tuple[float, float]:
    """Of a short caption and of a long one, as they are trained on; 0 for one that isn't."""
    captions = config.captions
    told = manifest.captions if manifest else {}
    short = [told["short"]["mean_words"]] if "short" in told else []
    long = [count["mean_words"] for name, count in told.items() if name.startswith("long.")]
    if captions.sentences_per_sub_caption:
        long = []  # how long some of a caption's sentences are, the manifest does not tell
    return (
        _length(config, "short_tokens", cluster.short_tokens, short) * captions.short_caption,
        _length(config, "long_tokens", cluster.long_tokens, long) * (captions.num_sub_captions > 0),
    )


def _length(config: TrainConfig, key: str, given: float, mean_words: Sequence[float]) -> float:
    """Tokens of a caption: as given, or reckoned from words."""
    text = config.model.text
    if not given and not mean_words:
        raise ConfigError(f"{config.data.train} does not tell how long captions are: give {key}")
    mean = sum(mean_words) / len(mean_words) if mean_words else 0.0
    reckoned = _TOKENS_PER_WORD * mean + _CONTROL_TOKENS + text.num_corner_tokens
    return min(given or reckoned, float(text.context_length))
