"""Contrastive loss over one image feature and one or several text features.

Shape suffixes: B images on this worker, G images in the global batch, N text features of one
image, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip import distributed


def multi_text_loss(
    image_BD: Tensor,
    text_BND: Tensor,
    scale: Tensor,
    *,
    long_weight: float = 1.0,
) -> Tensor:
    """The mean over the N text features of the symmetric InfoNCE (Wu et al. 2024, section 3.3).

    Features are unit vectors, `scale` multiplies their cosines. Text feature i of an image is
    contrasted with feature i of the other images only, over the batches of all workers. Feature 0
    is the short caption's; the others count `long_weight` times as much (1 in the paper).

    Returns this worker's share: its mean over the workers is the loss of the global batch, so
    gradients averaged over the workers (as DistributedDataParallel does) equal those of a single
    worker with the whole batch.
    """
    num_images, num_texts, _ = text_BND.shape
    features = torch.cat([image_BD[:, None], text_BND], dim=1).float()
    everyone = distributed.gather(features)
    first = distributed.rank() * num_images
    target_B = torch.arange(first, first + num_images, device=image_BD.device)
    weights = [1.0] + [long_weight] * (num_texts - 1)
    total = features.new_zeros(())
    for index, weight in enumerate(weights, start=1):
        to_text_BG = scale * features[:, 0] @ everyone[:, index].T
        to_image_BG = scale * features[:, index] @ everyone[:, 0].T
        both = F.cross_entropy(to_text_BG, target_B) + F.cross_entropy(to_image_BG, target_B)
        total = total + weight * both / 2
    return total / sum(weights)
