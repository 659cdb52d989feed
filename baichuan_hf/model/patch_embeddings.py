"""The tokens of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_baichuan import BaichuanConfig


class PatchEmbeddings(nn.Module):
    """A class token, and a linear projection of each patch (Dosovitskiy et al. 2021).

    (B, num_channels, image_size, image_size) -> (B, 1 + patches, hidden_size).
    """

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.shape = (config.num_channels, config.image_size, config.image_size)
        tokens = 1 + (config.image_size // config.patch_size) ** 2
        if config.max_position_embeddings < tokens:
            raise ValueError(
                f"An image of {config.image_size} pixels in patches of {config.patch_size} makes {tokens} tokens, but"
                f" max_position_embeddings is {config.max_position_embeddings}: set it to {tokens}."
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if tuple(pixel_values.shape[1:]) != self.shape:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, but the config's num_channels and image_size ask"
                f" for (batch, {', '.join(map(str, self.shape))}): resize the images, as the image processor does."
            )
        patches = self.projection(pixel_values).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
