"""An encoder beside the decoder: what the lecture's notes call cross-attention.

The lecture's model is a decoder alone: it continues a text. Where one text is to be made of another
(Vaswani et al. 2017 translate), an encoder reads the source, all of its tokens seeing each other,
and every block of the decoder looks it up by cross-attention: its queries are of the text being
made, its keys and values of the source.

Source and text stand in one row of tokens, the source first and always of the same length, so that
data, training, evaluation and checkpoints need not know that there are two.
"""

import torch
import torch.nn as nn


class EncoderDecoder(nn.Module):
    """The blocks of a model, in the place of its `nn.Sequential`: (B, T, C) -> (B, T, C).

    The first `source_size` of T go through the encoder, the others through the decoder, whose
    blocks take (x, source). Works on blocks of `gpt/models/reference.py` and of `gpt/models/packed.py`.
    """

    def __init__(self, source_size: int, encoder: list, norm: nn.Module, decoder: list):
        super().__init__()
        self.source_size = source_size
        self.encoder = nn.Sequential(*encoder)
        self.norm = norm  # of what the encoder has made
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x):
        source, x = x.split((self.source_size, x.shape[1] - self.source_size), dim=1)
        source = self.norm(self.encoder(source))  # (B, S, C)
        for block in self.decoder:
            x = block(x, source)  # (B, T - S, C)
        return torch.cat((source, x), dim=1)

    def __iter__(self):
        yield from self.encoder
        yield from self.decoder
