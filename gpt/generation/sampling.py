"""How the next token is chosen: greedy, or sampled with temperature, top-k and top-p."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import UserError
from ..config.base import Config, option


@dataclass(frozen=True)
class Sampling(Config):
    """The rule that turns logits into a token; raises UserError for values out of range.

    `ops.sample_token` applies the same rule in the decode loop, where a CUDA graph has its seed.
    """

    temperature: float = option(
        1.0, "divisor of the logits; 0 selects the most likely token", at_least=0
    )
    top_k: int = option(0, "sample only from the k most likely tokens; 0 disables it", at_least=0)
    top_p: float = option(
        1.0, "sample only from the fewest tokens that together have this probability", at_least=0
    )
    vocab_size: int | None = None  # logits from here on are padding and never chosen

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose one token per row: logits (B, V) -> (B,) int64."""
        logits = logits[:, : self.vocab_size].float()
        if self.temperature == 0.0:
            return logits.argmax(-1)
        temperature = max(self.temperature, torch.finfo(torch.float32).tiny)
        scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(logits < least, -math.inf)
        probabilities = F.softmax(scaled, dim=-1)
        if self.top_p < 1.0:
            # nucleus sampling (Holtzman et al. 2020): more likely tokens have less than top_p
            ordered, order = probabilities.sort(dim=-1, descending=True)
            first = torch.searchsorted(-ordered, -ordered)  # of the equally likely tokens
            before = (ordered.cumsum(-1) - ordered).gather(-1, first)
            kept = torch.empty_like(order, dtype=torch.bool)
            probabilities = probabilities * kept.scatter_(-1, order, before < self.top_p)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
