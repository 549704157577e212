"""An encoder in front of the decoder: what the lecture's notes call cross-attention.

The lecture's model is a decoder only: it continues a text. To turn one text into another (Vaswani
et al. 2017 translate), an encoder reads the source, in which every token sees every other, and each
block of the decoder attends to it: its queries come from the text that is generated, its keys and
values from the source.

Source and text are one row of tokens, with the source first and of fixed length, so that data,
training, evaluation and checkpoints do not need to distinguish them.
"""

from collections.abc import Iterator

import torch
import torch.nn as nn


class EncoderDecoder(nn.Module):
    """The blocks of a model, in place of its `nn.Sequential`: (B, T, C) -> (B, T, C).

    The first `source_size` of T tokens go through the encoder, the others through the decoder,
    whose blocks take (x, source). The blocks are those of the reference, or packed ones.
    """

    def __init__(self, source_size: int, encoder: list, norm: nn.Module, decoder: list):
        super().__init__()
        self.source_size = source_size
        self.encoder = nn.Sequential(*encoder)
        self.norm = norm  # of the encoder's output
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source, x = x.split((self.source_size, x.shape[1] - self.source_size), dim=1)
        source = self.norm(self.encoder(source))  # (B, S, C)
        for block in self.decoder:
            x = block(x, source)  # (B, T - S, C)
        return torch.cat((source, x), dim=1)

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self.encoder
        yield from self.decoder
