"""The config of `lotlip relabel`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lotlip.configuration import to_dict
from lotlip.errors import ConfigError
from lotlip.relabel.asking import GenerationConfig, PromptConfig
from lotlip.relabel.audit import AuditConfig
from lotlip.relabel.huggingface import HuggingFaceConfig
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.endpoint import EndpointConfig
from lotlip_platform.tracking_address import TrackingConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """A model that vLLM runs on the workers' GPUs, where it is installed."""

    model: str = ""
    """A name on the Hugging Face hub, or a folder that all workers see. Empty: another kind."""
    revision: str = ""
    """Of the hub: a branch, a tag or a commit; empty: the newest. The commit is recorded."""
    batch_size: int = 64
    """Questions that are handed to an engine, and answers that are kept, together."""
    shards_at_once: int = 64
    """Shards whose questions are asked, and asked again, together: one start of the engines each
    round. The audit ends a run after that many at the latest."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's engine, as in {max_model_len: 4096, tensor_parallel_size: 2}."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"captioner.vllm.batch_size={self.batch_size} must be 1 or more")
        if self.shards_at_once < 1:
            raise ConfigError(
                f"captioner.vllm.shards_at_once={self.shards_at_once} must be 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Who writes the captions: one of those below."""

    name: str
    """Under which the captions are kept, and which captions.captioners of a training run names."""
    huggingface: HuggingFaceConfig = field(default_factory=HuggingFaceConfig)
    """A model of transformers, run by the workers."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """A server that speaks OpenAI's API."""

    vllm: VllmConfig = field(default_factory=VllmConfig)
    """The same by vLLM in process, many questions at once."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"captioner.name={self.name!r} must be made of letters, digits, '.', '_' and '-'"
            )
        given = (self.huggingface.model, self.endpoint.url, self.vllm.model)
        if sum(map(bool, given)) != 1:
            raise ConfigError(
                "captioner needs one of captioner.huggingface.model, captioner.endpoint.url and "
                f"captioner.vllm.model, got {sum(map(bool, given))} of them"
            )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The processes that caption, each a shard at a time."""

    num_workers: int = 1
    """So many at once."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each."""
    gpus_per_worker: float = 0.0
    """1 runs the model of captioner.huggingface on a GPU; 0 on the CPU."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"cluster.num_workers={self.num_workers} must be 1 or more")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ConfigError(
                f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0, "
                f"cluster.gpus_per_worker={self.gpus_per_worker} 0 or more"
            )

    def as_cluster(self) -> ClusterConfig:
        """What it asks of the cluster."""
        return ClusterConfig(
            num_workers=self.num_workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
        )


@dataclass(frozen=True, kw_only=True)
class AccountConfig:
    """What captioning costs, in any currency; 0: nothing, or unknown."""

    price_per_gpu_hour: float = 0.0
    """Of the workers' GPUs, and those of num_endpoint_gpus."""
    num_endpoint_gpus: float = 0.0
    """Behind captioner.endpoint.url, if they are there for this run alone."""
    price_per_million_input_tokens: float = 0.0
    """Of questions, images included as the endpoint counts them."""
    price_per_million_output_tokens: float = 0.0
    """Of answers."""

    def __post_init__(self) -> None:
        for name, value in to_dict(self).items():
            if value < 0:
                raise ConfigError(f"account.{name}={value} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """All of a relabelling: which images, who captions them, what is kept."""

    name: str
    """The run's name and its folder in the store. Running the same name again goes on with it."""
    store: str = ""
    """Where run folders lie: a folder or s3://BUCKET/PREFIX. Empty: `runs` in the lotlip home."""
    source: str
    """The data set whose images are captioned; it stays as it is."""
    target: str
    """Where the data set with the new captions is written; nothing else may be there."""
    captioner: CaptionerConfig
    """Who writes them."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """What is asked."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How answers are made."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """What captions are kept."""
    cluster: PoolConfig = field(default_factory=PoolConfig)
    """Where it runs."""
    account: AccountConfig = field(default_factory=AccountConfig)
    """What it costs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where it is recorded; registered_model does not matter here."""

    def __post_init__(self) -> None:
        endpoint, workers = self.captioner.endpoint, self.cluster.num_workers
        if endpoint.url and endpoint.concurrency < workers:
            raise ConfigError(
                f"captioner.endpoint.concurrency={endpoint.concurrency} is shared by "
                f"cluster.num_workers={workers}: give at least as much, or fewer workers"
            )
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name={self.name!r} must be made of letters, digits, '.', '_' and '-': it names "
                "a folder"
            )
        if self.source.rstrip("/") == self.target.rstrip("/"):
            raise ConfigError(f"target={self.target} must be another place than source")
        num_prompts, again = len(self.prompts.texts), self.audit.max_asks
        if not self.generation.temperature and self.prompts.per_sample * again > num_prompts:
            raise ConfigError(
                f"prompts.per_sample={self.prompts.per_sample} captions, asked for up to "
                f"audit.max_asks={again} times, need as many prompts in prompts.texts, which has "
                f"{num_prompts}: with generation.temperature=0 a prompt says the same again"
            )

    @property
    def captioners(self) -> tuple[str, ...]:
        """Under which names the captions of a sample are kept."""
        name, more = self.captioner.name, range(2, self.prompts.per_sample + 1)
        return (name, *(f"{name}-{number}" for number in more))


def settings(config: RelabelConfig, revision: str) -> dict[str, Any]:
    """What made the captions, as it is recorded beside each of them; prompts by name apart."""
    model, captioner = config.captioner, {}
    if model.huggingface.model:
        captioner = {"model": model.huggingface.model, "by": "transformers"}
        captioner["dtype"] = model.huggingface.dtype
    elif model.vllm.model:
        captioner = {"model": model.vllm.model, "by": "vllm", **model.vllm.engine}
    else:
        captioner = {"model": model.endpoint.model, "by": "endpoint", **model.endpoint.extra}
    if config.prompts.system:
        captioner["system"] = config.prompts.system
    return {**captioner, "revision": revision, **to_dict(config.generation)}
