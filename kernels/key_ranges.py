"""Which keys the rows of attention may see, for packed documents, variable lengths and padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeyRanges(NamedTuple):
    """The keys that each row may see, and the rows that may see each key, for `ranges=`.

    A range is [first, end), int32; end <= first is empty. `of_keys` says which rows the gradients
    of a key come from: every row that may see it, and possibly more. Ranges apply together with
    `causal` and `window`. Attention visits only tiles that contain a range of one of their rows, so
    with documents time grows with the squares of their lengths. The constructors work on the device
    of their arguments without synchronising with the host, also inside a CUDA graph.
    """

    of_rows: Tensor  # (B or 1, Tq, 2)
    of_keys: Tensor  # (B or 1, Tk, 2)

    @classmethod
    def of_documents(cls, document_ids: Tensor) -> KeyRanges:
        """Each token sees the tokens of its own document, a run of equal ids (B, T)."""
        begins = document_ids.diff(dim=1) != 0
        runs = torch.nn.functional.pad(begins, (1, 0)).cumsum(1)  # (B, T), nondecreasing
        ends = [torch.searchsorted(runs, runs, right=right) for right in (False, True)]
        ranges = torch.stack(ends, dim=-1).int()
        return cls(ranges, ranges)

    @classmethod
    def of_cu_seqlens(
        cls, cu_seqlens: Tensor, T: int, cu_seqlens_k: Tensor | None = None, Tk: int | None = None
    ) -> KeyRanges:
        """FlashAttention's variable lengths: sequence i is the tokens cu_seqlens[i] to [i + 1].

        cu_seqlens (N + 1,) are integers that begin with 0; q, k and v are (1, H, T, D) with all
        sequences one after the other. Tokens past the last sequence see nothing. Keys may have
        lengths of their own, then with causal=False: causality counts from the first token of all.
        """
        cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        return cls(
            _of_sequences(cu_seqlens, T, cu_seqlens_k),
            _of_sequences(cu_seqlens_k, T if Tk is None else Tk, cu_seqlens),
        )

    @classmethod
    def of_padding(cls, is_token: Tensor, Tq: int) -> KeyRanges:
        """All Tq rows see the keys that are tokens and not padding, (B, Tk) booleans.

        As in Hugging Face's attention_mask, True is a token; PyTorch's key_padding_mask is its
        inverse. The tokens of each sequence are contiguous: padding is on the left, right or both.
        """
        tokens = is_token.int()
        first = tokens.argmax(1)
        keys = torch.stack((first, first + tokens.sum(1)), dim=-1).int()  # (B, 2)
        rows = torch.stack((torch.zeros_like(tokens), tokens * Tq), dim=-1)  # (B, Tk, 2)
        return cls(keys[:, None].expand(-1, Tq, -1), rows)


def _of_sequences(cu_seqlens: Tensor, T: int, cu_seqlens_of_others: Tensor) -> Tensor:
    """(1, T, 2): the range that the sequence of each token has among the others."""
    token = torch.arange(T, device=cu_seqlens.device)
    end = torch.searchsorted(cu_seqlens, token, right=True)
    last = len(cu_seqlens) - 1
    ends = (end - 1, end.clamp(max=last))  # equal past the last sequence
    return torch.stack([cu_seqlens_of_others[i] for i in ends], dim=-1).int()[None]
