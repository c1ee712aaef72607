"""The dual encoder: an image tower, a text tower with corner tokens, and a temperature.

Shape suffixes: B images on this worker, C channels, H and W pixels, S captions of one image,
L tokens, N text features of one image, D embedding width, m corner tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from lotlip.errors import ConfigError
from lotlip.losses import multi_text_loss, multi_text_sigmoid_loss
from lotlip.model.config import ModelConfig
from lotlip.model.image_tower import ImageTower
from lotlip.model.packing import is_read, pack
from lotlip.model.text_tower import TextTower
from lotlip.tokenizer import Tokenizer

_MAX_LOG_SCALE = math.log(100.0)
_FIRST_SCALE_AND_BIAS = {"softmax": (1 / 0.07, None), "sigmoid": (10.0, -10.0)}
"""As Radford et al. 2021 and Zhai et al. 2023 begin, by `ModelConfig.loss`."""


class LoTLIP(nn.Module):
    """Images and texts to unit vectors of one space (Wu et al. 2024).

    `tokenizer` is the one that the text tower was trained with; a model that was built but not
    yet given one has None.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_tower = ImageTower(config.image)
        self.text_tower = TextTower(config.text)
        self.image_projection = (
            nn.Linear(config.image.width, config.embed_dim, bias=False)
            if config.image.projection
            else nn.Identity()
        )
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        scale, bias = _FIRST_SCALE_AND_BIAS[config.loss]
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        nn.init.normal_(self.text_projection.weight, std=config.text.width**-0.5)
        for parameter in [
            *self.image_tower.locked_parameters(),
            *self.text_tower.locked_parameters(),
        ]:
            parameter.requires_grad_(False)

    def forward(
        self, images: Tensor, ids_BSL: Tensor, short_first: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Image features [B, D] and text features [B, N, D] of a training batch.

        `images` are [B, 3, H, W], or what the image tower made of them: [B, its width]. Ids are
        best left on the processor, see `pack`.
        """
        pixels = images.ndim == 4
        image_BD = self.encode_image(images) if pixels else self.project_image(images)
        return image_BD, self.encode_captions(ids_BSL, short_first)

    def compile_towers(self) -> None:
        """Have torch compile the image tower, and all of the text tower that goes row by row.

        Raises: ConfigError if it can't compile for this device here.
        """
        try:
            torch.compile(torch.neg)(self.logit_scale.detach())
        except Exception as error:  # whatever its compilers say
            raise ConfigError(
                f"train.compile=true: torch can't compile here ({type(error).__name__}): install a "
                "C++ compiler, or set it to false"
            ) from error
        self.image_tower.compile()
        self.text_tower.compile_layers()

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W], normalised to [-1, 1], to unit vectors [B, D]."""
        learns = torch.is_grad_enabled() and not self.image_tower_is_locked
        with record_function("image tower"), torch.set_grad_enabled(learns):
            pooled = self.image_tower(images_BCHW)
        return self.project_image(pooled)

    def project_image(self, pooled_BD: Tensor) -> Tensor:
        """The image tower's output [B, its width] to unit vectors [B, D]."""
        return F.normalize(self.image_projection(pooled_BD).float(), dim=-1)

    def encode_text(self, ids_BL: Tensor) -> Tensor:
        """Token ids [B, L] to unit vectors [B, D]: the [CLS] feature, for texts of any length."""
        return self._text_features(ids_BL, torch.zeros(len(ids_BL), dtype=torch.bool))

    def encode_captions(self, ids_BSL: Tensor, short_first: bool = True) -> Tensor:
        """The S captions of each image [B, S, L] to unit vectors [B, 1 + (S-1)(m+1), D].

        Text 0 is the short caption and gives its [CLS]; each long one gives its [CLS] and its
        corner tokens, in this order. Without `short_first` all are long: [B, S (m+1), D].
        """
        num_images, num_texts, _ = ids_BSL.shape
        is_long = torch.full((num_images, num_texts), self.config.text.num_corner_tokens > 0)
        is_long[:, : int(short_first)] = False
        features = self._text_features(ids_BSL.flatten(0, 1), is_long.flatten())
        return features.unflatten(0, (num_images, -1))

    def loss(self, image_BD: Tensor, text_BND: Tensor, *, long_weight: float = 1.0) -> Tensor:
        """This worker's share of the loss of a training batch; see `losses`."""
        with record_function("loss"):
            if self.logit_bias is None:
                return multi_text_loss(image_BD, text_BND, self.scale(), long_weight=long_weight)
            return multi_text_sigmoid_loss(
                image_BD, text_BND, self.scale(), self.logit_bias, long_weight=long_weight
            )

    def scale(self) -> Tensor:
        """What cosines are multiplied with in the loss: 1 / temperature, within [1, 100]."""
        return self.logit_scale.clamp(0.0, _MAX_LOG_SCALE).exp()

    @torch.no_grad()
    def clamp_scale_(self) -> None:
        """Bring the learnt scale back into its range; due after each step of the optimiser.

        Without it a scale beyond the range would get no gradient any more.
        """
        self.logit_scale.clamp_(0.0, _MAX_LOG_SCALE)

    @property
    def image_tower_is_locked(self) -> bool:
        """Whether nothing in the image tower learns (its projection may)."""
        return self.config.image.locked_layers == -1

    def train(self, mode: bool = True) -> LoTLIP:
        """Training mode; locked modules of the image tower stay in evaluation mode."""
        super().train(mode)
        for module in self.image_tower.locked_modules():
            module.eval()
        return self

    def _text_features(self, ids_NL: Tensor, has_corners_N: Tensor) -> Tensor:
        """[CLS] of each text and, of those that have them, the corner tokens; text by text."""
        device = self.logit_scale.device
        if len(ids_NL) == 0:
            return torch.zeros(0, self.config.embed_dim, device=device)
        m, masked = self.config.text.num_corner_tokens, self.config.text.corner_mask
        # Without the mask, words and [CLS] look at corner tokens, also where nobody reads these.
        there_N = has_corners_N if masked else torch.full_like(has_corners_N, m > 0)
        with record_function("text tower"):
            texts = pack(ids_NL, m, there_N, device, masked=masked)
            pooled_RD = self.text_tower(texts)
            if not masked:
                pooled_RD = pooled_RD[is_read(has_corners_N, m).flatten()]
            projected = self.text_projection(pooled_RD)
        return F.normalize(projected.float(), dim=-1)
