"""What [CLS] and each corner token of a model look at in a caption (Wu et al. 2024, figure 1).

Shape suffixes: R readers ([CLS] and the corner tokens), T rows of the caption, W words, H heads,
D width.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from lotlip.evaluate.figures import FONT_PT, png
from lotlip.model import LoTLIP
from lotlip.model.corner_tokens import rule
from lotlip.model.packing import pack
from lotlip.model.text_tower import Layer
from lotlip.tokenizer import Tokenizer

_LETTERS = 88
"""Of a line of the figure, of which each reader has as many as its words take."""
_PIECE, _SEPARATOR = "##", "[SEP]"


@dataclass(frozen=True, kw_only=True)
class AttentionView:
    """Of one caption."""

    words: Sequence[str]
    """Whole ones, with the separators between sentences, as far as the model reads."""
    readers: Sequence[str]
    weights_RW: np.ndarray
    """The last layer's attention, the mean over its heads: shares of what each reader gives to the
    words."""
    cosines_RR: np.ndarray
    """Between the readers' features: corner tokens that learnt the same have 1."""


@torch.no_grad()
def view_attention(model: LoTLIP, caption: str) -> AttentionView:
    """How [CLS] and the corner tokens weigh the words of a caption."""
    tokenizer = model.tokenizer
    assert tokenizer is not None, "a model that was loaded or trained has its tokenizer"
    was_training = model.training
    model.eval()
    ids_1L = torch.from_numpy(tokenizer([caption]))
    weights_RT = _last_attention(model, ids_1L)
    features_RD = model.encode_captions(ids_1L[None], short_first=False)[0]
    model.train(was_training)
    m = model.config.text.num_corner_tokens
    words, word_T = _words(tokenizer, ids_1L[0, 1 + m :].tolist())
    # Rows are the corner tokens, [CLS], the words.
    of_words_RT = weights_RT[:, 1 + m :]
    weights_RW = torch.zeros(1 + m, len(words)).index_add_(1, torch.tensor(word_T), of_words_RT)
    # Separators are looked at a lot, and say nothing.
    weights_RW[:, [place for place, word in enumerate(words) if word == _SEPARATOR]] = 0
    return AttentionView(
        words=words,
        readers=["[CLS]", *(f"Corner {k}" for k in range(m))],
        weights_RW=(weights_RW / weights_RW.sum(dim=1, keepdim=True)).numpy(),
        cosines_RR=(features_RD @ features_RD.T).cpu().numpy(),
    )


def _last_attention(model: LoTLIP, ids_1L: Tensor) -> Tensor:
    """What each reader gives to each row of the text, [R, T] on the CPU; [CLS] is the first."""
    tower, m = model.text_tower, model.config.text.num_corner_tokens
    masked = model.config.text.corner_mask
    texts = pack(ids_1L, m, None, model.logit_scale.device, masked=masked)
    rows_TD = tower.embeddings(texts)
    *layers, last = tower.layers
    for layer in layers:
        rows_TD = layer(rows_TD, texts)
    assert isinstance(last, Layer)
    scores_HRT = _heads(last.query(texts.read(rows_TD)), last) @ _heads(
        last.key(rows_TD), last
    ).transpose(1, 2)
    scores_HRT = scores_HRT / (rows_TD.shape[1] // last.num_heads) ** 0.5
    if masked:
        allowed = rule(m, len(rows_TD), rows_TD.device)[: 1 + m]
        scores_HRT = scores_HRT.masked_fill(~allowed, -torch.inf)
    weights_RT = scores_HRT.softmax(dim=-1).mean(dim=0)
    return weights_RT[texts.order_R].float().cpu()


def _heads(rows_TD: Tensor, layer: Layer) -> Tensor:
    """[H, T, width of a head]."""
    return rows_TD.unflatten(1, (layer.num_heads, -1)).transpose(0, 1)


def _words(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The words that pieces make, and of which each piece is."""
    words: list[str] = []
    places: list[int] = []
    for number in ids:
        piece = tokenizer.decode([number])
        if piece.startswith(_PIECE) and words:
            words[-1] += piece.removeprefix(_PIECE)
        else:
            words.append(piece)
        places.append(len(words) - 1)
    return words, places


def attention_figure(view: AttentionView) -> bytes:
    """A block of text for each reader, words shaded by their weight, and the readers' cosines, as
    the bytes of a PNG."""
    lines = _lines(view.words)
    num_readers = len(view.readers)
    height_in = 0.35 + num_readers * (0.3 + 0.21 * len(lines)) + 0.3
    figure = Figure(figsize=(11.5, max(height_in, 2.6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4.2, 1))
    _draw_texts(left, view, lines)
    _draw_cosines(right, view)
    figure.suptitle("What the last layer looks at", fontsize=FONT_PT + 3)
    return png(figure)


def _lines(words: Sequence[str]) -> list[list[int]]:
    """Places of words, line by line."""
    lines: list[list[int]] = [[]]
    letters = 0
    for place, word in enumerate(words):
        if letters + len(word) > _LETTERS and lines[-1]:
            lines.append([])
            letters = 0
        lines[-1].append(place)
        letters += len(word) + 1
    return lines


def _draw_texts(panel: Axes, view: AttentionView, lines: Sequence[Sequence[int]]) -> None:
    panel.set_axis_off()
    panel.set_xlim(0, _LETTERS + 8)
    rows = len(view.readers) * (len(lines) + 1.4)
    panel.set_ylim(rows, 0)
    for reader, name in enumerate(view.readers):
        top = reader * (len(lines) + 1.4) + 0.7
        panel.text(0, top, name, fontsize=FONT_PT + 1, fontweight="bold", va="center")
        shade = Normalize(0, float(view.weights_RW[reader].max()))
        for number, line in enumerate(lines):
            x, y = 0.0, top + 1 + number
            for place in line:
                word = view.words[place]
                strength = float(shade(view.weights_RW[reader, place]))
                panel.fill_between(
                    (x - 0.3, x + len(word) + 0.3),
                    y - 0.45,
                    y + 0.45,
                    color=(0.0, 0.45, 0.70, strength),
                    linewidth=0,
                )
                panel.text(
                    x + len(word) / 2,
                    y,
                    word,
                    fontsize=FONT_PT - 1,
                    family="monospace",
                    va="center",
                    ha="center",
                    color="white" if strength > 0.6 else "black",
                )
                x += len(word) + 1


def _draw_cosines(panel: Axes, view: AttentionView) -> None:
    image = panel.imshow(view.cosines_RR, cmap="cividis", vmin=-1, vmax=1)
    for (row, column), cosine in np.ndenumerate(view.cosines_RR):
        panel.text(
            column,
            row,
            f"{cosine:.2f}",
            ha="center",
            va="center",
            fontsize=FONT_PT,
            color="white" if cosine < 0.3 else "black",
        )
    names = [textwrap.fill(name, 8) for name in view.readers]
    panel.set_xticks(range(len(names)), labels=names, fontsize=FONT_PT)
    panel.set_yticks(range(len(names)), labels=names, fontsize=FONT_PT)
    panel.set_title("cosines of their features", fontsize=FONT_PT + 1)
    bar = panel.figure.colorbar(image, ax=panel, shrink=0.6)
    bar.ax.tick_params(labelsize=FONT_PT)
