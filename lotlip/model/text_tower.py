"""The text tower: BERT with corner tokens.

Shape suffixes: T rows (all tokens of all texts, see `packing`), R rows that are read ([CLS] and the
corner tokens), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotlip.model.attention import attend
from lotlip.model.config import TextTowerConfig
from lotlip.model.packing import PAD_ID, PackedTexts
from lotlip.model.recomputing import through

_NORM_EPS = 1e-12  # BERT's
_BERT_WIDTH, _BERT_INIT_STD = 768, 0.02


class Embeddings(nn.Module):
    """Word pieces, corner tokens and positions. All tokens are of BERT's segment 0."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width)
        # A parameter of its own: it learns where the word pieces are locked, and is in nobody's
        # pretrained table.
        num_corners = config.num_corner_tokens
        # Where there are none, nothing would ever bring a gradient, which DistributedDataParallel
        # waits for.
        self.corners = nn.Parameter(
            torch.empty(num_corners, config.width), requires_grad=num_corners > 0
        )
        self.positions = nn.Embedding(config.num_positions, config.width)
        self.segment = nn.Parameter(torch.empty(config.width))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)

    def forward(self, texts: PackedTexts) -> Tensor:
        corners = self.corners.repeat(len(texts.corner_rows) // max(1, len(self.corners)), 1)
        words_TD = self.words(texts.ids_T)
        tokens_TD = words_TD.index_copy(0, texts.corner_rows, corners)
        return self.norm(tokens_TD + self.positions(texts.positions_T) + self.segment)


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each added to its input and normalised after it."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, rows_TD: Tensor, texts: PackedTexts, *, read: bool = False) -> Tensor:
        """The rows [T, D] again; or, if no more is needed, those that are read: [R, D]."""
        dropout = self.dropout if self.training else 0.0
        rows = texts.read(rows_TD) if read else rows_TD
        if read:
            query = self.query(rows)
            key, value = _together(rows_TD, self.key, self.value)
        else:
            query, key, value = _together(rows_TD, self.query, self.key, self.value)
        mixed = attend(
            query,
            key,
            value,
            texts.groups,
            num_heads=self.num_heads,
            dropout=dropout,
            read=read,
        )
        return self.behind_attention(rows, mixed, dropout)

    def behind_attention(self, rows: Tensor, mixed: Tensor, dropout: float) -> Tensor:
        """What each row becomes by what it saw: [R, D]."""
        rows = self.norm1(rows + F.dropout(self.output(mixed), dropout))
        hidden = self.fc2(F.gelu(self.fc1(rows)))
        return self.norm2(rows + F.dropout(hidden, dropout))


def _together(rows: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """What each layer makes of the same rows, by one product."""
    weights = torch.cat([layer.weight for layer in layers])
    biases = torch.cat([layer.bias for layer in layers])
    return F.linear(rows, weights, biases).chunk(len(layers), dim=1)


class TextTower(nn.Module):
    """Token ids to the pooled features of [CLS] and the corner tokens, before projection."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.pooler = nn.Linear(config.width, config.width)
        self.recomputes = False
        """Whether backward computes the layers again, rather than keep what it needs of them."""
        self._init_weights()

    def forward(self, texts: PackedTexts) -> Tensor:
        """To [R, D]: [CLS] of the first text, its corner tokens if it has any, the next text."""
        rows_TD = F.dropout(self.embeddings(texts), self.config.dropout, self.training)
        *layers, last = self.layers
        for layer in layers:
            rows_TD = through(layer, rows_TD, texts, recomputes=self.recomputes)
        read_RD = last(rows_TD, texts, read=True)
        return torch.tanh(self.pooler(read_RD[texts.order_R]))

    def compile_layers(self) -> None:
        """All of them but attention: how rows share in it is new in each batch."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.behind_attention = torch.compile(layer.behind_attention, dynamic=True)

    def locked_parameters(self) -> list[nn.Parameter]:
        """Every parameter that does not learn; never the corner tokens."""
        locked = self.config.locked_layers
        if locked == -1:
            modules: list[nn.Module] = [self]
        else:
            modules = [self.embeddings, *self.layers[:locked]] if locked else []
        found = [parameter for module in modules for parameter in module.parameters()]
        return [parameter for parameter in found if parameter is not self.embeddings.corners]

    def _init_weights(self) -> None:
        # BERT's own at BERT's width; a narrower layer needs larger weights to have the same effect.
        std = _BERT_INIT_STD * (_BERT_WIDTH / self.config.width) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        nn.init.normal_(self.embeddings.corners, std=std)
        nn.init.normal_(self.embeddings.segment, std=std)
        with torch.no_grad():
            self.embeddings.words.weight[PAD_ID].zero_()
