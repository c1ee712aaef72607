"""The captioner that a config names."""

from __future__ import annotations

from dataclasses import replace

import torch

from lotlip.errors import ClusterError, ConfigError
from lotlip.relabel.asking import Captioner
from lotlip.relabel.huggingface import HuggingFaceCaptioner, revision_of
from lotlip_platform.endpoint import EndpointCaptioner, check_endpoint
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_vllm import check_vllm


def check_captioner(config: RelabelConfig, known: str = "") -> str:
    """The revision of the model, which must be there: if the config names none, the `known` one,
    by which the run was begun. Raises: LotlipError."""
    huggingface, vllm = config.captioner.huggingface, config.captioner.vllm
    of_hub = "" if known.startswith("sha256:") else known
    if huggingface.model:
        wanted = huggingface.revision or of_hub
        return revision_of(huggingface.model, wanted, "captioner.huggingface.model")
    if vllm.model:
        check_vllm()
        return revision_of(vllm.model, vllm.revision or of_hub, "captioner.vllm.model")
    check_endpoint(config.captioner.endpoint)
    return config.captioner.endpoint.revision


def captioner_of(config: RelabelConfig, revision: str = "") -> Captioner:
    """The captioner that the config names, in this process. Raises: LotlipError."""
    captioner, system = config.captioner, config.prompts.system
    if captioner.vllm.model:
        raise ConfigError(
            "captioner.vllm answers many questions at once, as Ray Data hands them on: to try it, "
            "give captioner.huggingface.model, or serve it and give captioner.endpoint.url"
        )
    if captioner.huggingface.model:
        device = "cuda" if config.cluster.gpus_per_worker else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                "there is no GPU that torch can use: give cluster.gpus_per_worker=0 to caption on "
                "the CPU"
            )
        of_hub = revision and not revision.startswith("sha256:")
        model = replace(captioner.huggingface, **({"revision": revision} if of_hub else {}))
        return HuggingFaceCaptioner(model, config.generation, system=system, device=device)
    return EndpointCaptioner(
        captioner.endpoint,
        config.generation,
        system=system,
        num_workers=config.cluster.num_workers,
    )
