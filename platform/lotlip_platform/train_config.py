"""The config of `lotlip train`: one dataclass of those that lie beside the code they steer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from lotlip.captions import CaptionConfig
from lotlip.data.pipeline import DataConfig
from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import EvalConfig
from lotlip.images import AugmentConfig
from lotlip.model import ModelConfig
from lotlip.train.loop import LoopConfig
from lotlip.train.optim import OptimConfig
from lotlip_platform.checkpoints import CheckpointConfig
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.tracking_address import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the word pieces come from."""

    pretrained: str = ""
    """A BERT folder or hub name, whose vocabulary is taken. Empty: learnt on the captions."""
    num_samples: int = 20_000
    """Samples whose captions a vocabulary is learnt from."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"tokenizer.num_samples={self.num_samples} must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Procedural scenes that a run makes for itself where there are none yet, to begin with."""

    uri: str = ""
    """They are made at URI/train and URI/validation, if those are data.train and eval.data. Empty:
    none are made."""
    num_train: int = 20_000
    """Scenes to train on."""
    num_validation: int = 1_000
    """Scenes to evaluate on while training, none of them among the others."""

    def data_sets(self) -> tuple[tuple[Literal["train", "validation"], str, int], ...]:
        """Split, address and number of scenes of each that is made."""
        if not self.uri:
            return ()
        place = self.uri.rstrip("/")
        return (
            ("train", f"{place}/train", self.num_train),
            ("validation", f"{place}/validation", self.num_validation),
        )

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_validation) < 1:
            raise ConfigError(
                f"scenes.num_train={self.num_train} and scenes.num_validation="
                f"{self.num_validation} must be 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a training run."""

    name: str
    """The run's name and its folder in the store. Running the same name again resumes it."""
    store: str = ""
    """Where run folders lie: a folder or s3://BUCKET/PREFIX. Empty: `runs` in the lotlip home."""
    model: ModelConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                f"name={self.name!r} must be made of letters, digits, '.', '_' and '-': it names "
                "a folder"
            )
        if self.checkpoint.keep_best and not (self.eval.data and self.train.eval_every_steps):
            raise ConfigError(
                f"checkpoint.keep_best={self.checkpoint.keep_best} needs evaluations to tell the "
                "best by: set eval.data and train.eval_every_steps, or leave it 0"
            )
        if self.model.text.pretrained and not self.tokenizer.pretrained:
            raise ConfigError(
                f"model.text.pretrained={self.model.text.pretrained} knows the word pieces of its "
                "own vocabulary only: set tokenizer.pretrained to the same"
            )
        augmented = self.augment.min_crop_area < 1.0 or self.augment.flip
        if self.data.features and (self.model.image.locked_layers != -1 or augmented):
            raise ConfigError(
                f"data.features={self.data.features} needs the same features in each epoch: set "
                "model.image.locked_layers=-1, augment.min_crop_area=1 and augment.flip=false, or "
                "leave it empty"
            )
