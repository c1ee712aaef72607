"""The text tower: BERT with corner tokens.

Shape suffixes: B texts, L tokens, R = 1 + m read positions ([CLS] and the corner tokens), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotlip.model.config import TextTowerConfig
from lotlip.model.corner_tokens import PAD_ID, attention_mask

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

    def forward(self, ids_BL: Tensor) -> Tensor:
        table = torch.cat([self.words.weight, self.corners]) if len(self.corners) else None
        words_BLD = self.words(ids_BL) if table is None else F.embedding(ids_BL, table)
        position_LD = self.positions.weight[: ids_BL.shape[1]]
        return self.norm(words_BLD + position_LD + self.segment)


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

    def forward(self, tokens_BLD: Tensor, mask: Tensor, num_read: int | None = None) -> Tensor:
        """The tokens [B, L, D] again; or only the first `num_read`, if no more is needed."""
        dropout = self.dropout if self.training else 0.0
        read_BRD = tokens_BLD[:, :num_read]
        mixed = F.scaled_dot_product_attention(
            self._heads(self.query(read_BRD)),
            self._heads(self.key(tokens_BLD)),
            self._heads(self.value(tokens_BLD)),
            attn_mask=mask[:, :, :num_read],
            dropout_p=dropout,
        )
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        read_BRD = self.norm1(read_BRD + F.dropout(mixed, dropout))
        hidden = self.fc2(F.gelu(self.fc1(read_BRD)))
        return self.norm2(read_BRD + F.dropout(hidden, dropout))

    def _heads(self, tokens_BLD: Tensor) -> Tensor:
        return tokens_BLD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class TextTower(nn.Module):
    """Token ids to the pooled features of [CLS] and the corner tokens, before projection."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.pooler = nn.Linear(config.width, config.width)
        self._init_weights()

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Ids as the tokenizer makes them, [B, L], to [B, 1 + m, D]: [CLS] first."""
        mask = attention_mask(ids_BL, self.config.num_corner_tokens)
        num_read = 1 + self.config.num_corner_tokens
        tokens_BLD = self.embeddings(ids_BL)
        tokens_BLD = F.dropout(tokens_BLD, self.config.dropout, self.training)
        *layers, last = self.layers
        for layer in layers:
            tokens_BLD = layer(tokens_BLD, mask)
        return torch.tanh(self.pooler(last(tokens_BLD, mask, num_read)))

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
