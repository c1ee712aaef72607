"""Contrastive losses over one image feature and one or several text features.

Each worker scores its own images against the texts of all workers. Logits are made some rows at a
time, used, and made again for the gradient: memory doesn't grow with the square of the batch.

Shape suffixes: B images on this worker, G images in the global batch, N text features of one
image, D embedding width, R rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lotlip import distributed

_TILE = 1 << 20
"""Logits at a time: enough to keep a processor busy, few enough to stay in its cache."""


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
    shares = [share / 2 for share in _shares(text_BND, long_weight)]  # both ways
    text_GND = distributed.gather(text_BND.float())
    loss: Tensor = _InfoNCE.apply(scale, image_BD.float(), text_GND, shares)  # type: ignore[assignment]
    return loss


def multi_text_sigmoid_loss(
    image_BD: Tensor,
    text_BND: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    long_weight: float = 1.0,
) -> Tensor:
    """The mean over the N text features of the sigmoid loss (Zhai et al. 2023).

    Each pair of an image and a text is judged by itself: whether they belong together. `bias` is
    added to the scaled cosines; all else is as in `multi_text_loss`.
    """
    shares = _shares(text_BND, long_weight)
    text_GND = distributed.gather(text_BND.float())
    loss: Tensor = _Sigmoid.apply(scale, bias, image_BD.float(), text_GND, shares)  # type: ignore[assignment]
    return loss


def _shares(text_BND: Tensor, long_weight: float) -> list[float]:
    """Of one image in a mean over images and text features, by text feature."""
    num_images, num_texts, _ = text_BND.shape
    weights = [1.0] + [long_weight] * (num_texts - 1)
    return [weight / (num_images * sum(weights)) for weight in weights]


class _InfoNCE(torch.autograd.Function):
    """Images against texts, and texts against images, from the same logits.

    To judge a text against the images of all workers takes two numbers of each worker. Backward
    gives the gradient of the sum of all workers' losses, to which each has only to add its own.
    """

    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, image_BD: Tensor, text_GND: Tensor, shares: Sequence[float]
    ) -> Tensor:
        """`shares` are those of one cross-entropy in the loss, by text feature."""
        num_texts = len(shares)
        own_NB = image_BD.new_empty(num_texts, len(image_BD))
        of_images = _Sums.none(num_texts, image_BD)
        of_texts = _Sums.none(num_texts, text_GND)
        for n in range(num_texts):
            for rows, scaled_RD in _rows(image_BD, text_GND, scale):
                logits_RG = scaled_RD @ text_GND[:, n].T
                own_NB[n, rows] = _own(logits_RG, rows, image_BD)
                of_images.add(logits_RG, (n, rows), dim=1)
                of_texts.add(logits_RG, (n, slice(None)), dim=0)
        of_texts.join_workers()
        first = distributed.rank() * len(image_BD)
        of_own_texts = of_texts.part(slice(first, first + len(image_BD)))
        both_NB = of_images.logs_less(own_NB) + of_own_texts.logs_less(own_NB)
        ctx.shares = shares
        ctx.save_for_backward(scale, image_BD, text_GND, *of_images, *of_texts)
        return both_NB.new_tensor(shares) @ both_NB.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale, image_BD, text_GND, *sums = ctx.saved_tensors
        of_images, of_texts = _Sums(*sums[:2]), _Sums(*sums[2:])

        def gradient(logits_RG: Tensor, n: int, rows: slice) -> Tensor:
            to_text = of_images.softmax_(logits_RG.clone(), (n, rows), dim=1)
            to_image = of_texts.softmax_(logits_RG, (n, slice(None)), dim=0)
            for grad_RG in (to_text, to_image):  # before they are added: what is left is small
                _own(grad_RG, rows, image_BD).sub_(1.0)
            return to_text.add_(to_image).mul_(ctx.shares[n] * grad_outputs[0])

        grads = _gradients(scale, image_BD, text_GND, gradient)
        return *grads, None


class _Sigmoid(torch.autograd.Function):
    """Each image against each text of all workers, pair by pair."""

    @staticmethod
    def forward(
        ctx: Any,
        scale: Tensor,
        bias: Tensor,
        image_BD: Tensor,
        text_GND: Tensor,
        shares: Sequence[float],
    ) -> Tensor:
        """`shares` are those of one pair in the loss, by text feature."""
        loss = torch.zeros_like(scale)
        for n, share in enumerate(shares):
            for rows, scaled_RD in _rows(image_BD, text_GND, scale):
                logits_RG = scaled_RD @ text_GND[:, n].T + bias
                # -log sigmoid(x) is softplus(x) - x.
                own_R = _own(logits_RG, rows, image_BD)
                loss += share * (F.softplus(logits_RG).sum() - own_R.sum())
        ctx.shares = shares
        ctx.save_for_backward(scale, bias, image_BD, text_GND)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale, bias, image_BD, text_GND = ctx.saved_tensors
        grad_bias = torch.zeros_like(bias)

        def gradient(logits_RG: Tensor, n: int, rows: slice) -> Tensor:
            grad_RG = logits_RG.add_(bias).sigmoid_()
            _own(grad_RG, rows, image_BD).sub_(1.0)
            grad_RG.mul_(ctx.shares[n] * grad_outputs[0])
            grad_bias.add_(grad_RG.sum())
            return grad_RG

        grad_scale, *grads = _gradients(scale, image_BD, text_GND, gradient)
        return grad_scale, grad_bias, *grads, None


class _Sums(NamedTuple):
    """Sums of exponentials, as multiples of the largest: [N, B] or [N, G].

    In double precision: what the workers have summed apart is the same, then, as if summed by one.
    """

    largest: Tensor
    """Its exponent."""
    multiple: Tensor

    @classmethod
    def none(cls, num_texts: int, features: Tensor) -> _Sums:
        shape = num_texts, len(features)
        return cls(
            features.new_full(shape, -torch.inf), features.new_zeros(shape, dtype=torch.float64)
        )

    def add(self, logits: Tensor, place: Any, dim: int) -> None:
        """Add the exponentials of the logits along a dimension."""
        before = self.largest[place]
        largest = torch.maximum(before, logits.amax(dim))
        added = (logits - largest.unsqueeze(dim)).exp_().sum(dim, dtype=torch.float64)
        self.multiple[place] = self.multiple[place] * (before - largest).double().exp() + added
        self.largest[place] = largest

    def join_workers(self) -> None:
        """Add those of all workers."""
        largest = distributed.largest(self.largest)
        self.multiple.copy_(
            distributed.total(self.multiple * (self.largest - largest).double().exp())
        )
        self.largest.copy_(largest)

    def part(self, places: slice) -> _Sums:
        return _Sums(self.largest[:, places], self.multiple[:, places])

    def logs_less(self, logits: Tensor) -> Tensor:
        """Their logarithms less the logits: cross-entropies, if those are of the right pairs."""
        return (self.largest - logits) + self.multiple.log().float()

    def softmax_(self, logits: Tensor, place: Any, dim: int) -> Tensor:
        """The logits' exponentials as shares of the sum, in their place."""
        largest, multiple = (values[place].unsqueeze(dim) for values in self)
        return logits.sub_(largest).exp_().div_(multiple.float())


def _gradients(
    scale: Tensor,
    image_BD: Tensor,
    text_GND: Tensor,
    of_logits: Callable[[Tensor, int, slice], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of scale, image and text features; `of_logits` gives that of some logits."""
    grad_scale = torch.zeros_like(scale)
    grad_image_BD, grad_text_GND = torch.zeros_like(image_BD), torch.zeros_like(text_GND)
    for n in range(text_GND.shape[1]):
        for rows, scaled_RD in _rows(image_BD, text_GND, scale):
            grad_RG = of_logits(scaled_RD @ text_GND[:, n].T, n, rows)
            grad_RD = grad_RG @ text_GND[:, n]
            grad_scale += (grad_RD * image_BD[rows]).sum()
            grad_image_BD[rows].addcmul_(grad_RD, scale)
            grad_text_GND[:, n].addmm_(grad_RG.T, scaled_RD)
    return grad_scale, grad_image_BD, grad_text_GND


def _rows(image_BD: Tensor, text_GND: Tensor, scale: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time, times the scale."""
    num_rows = max(1, _TILE // len(text_GND))
    for start in range(0, len(image_BD), num_rows):
        rows = slice(start, start + num_rows)
        yield rows, scale * image_BD[rows]


def _own(logits_RG: Tensor, rows: slice, image_BD: Tensor) -> Tensor:
    """Those of the images with their own texts; a view."""
    return logits_RG.diagonal(distributed.rank() * len(image_BD) + rows.start)
