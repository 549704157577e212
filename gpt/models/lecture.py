"""The road to the GPT of `gpt/models/reference.py`: the steps of the video, each a model that trains.

Read from top to bottom beside "Let's build GPT: from scratch, in code, spelled out"; the times in
square brackets are its chapters. `python train.py --lecture STEP` trains a step of `STEPS`, the
table at the end. Every step turns tokens into logits for the next token; what changes is how a
token hears of the tokens before it. Of the config only the sizes count here, every switch stays
where the video has it, and weights are drawn by PyTorch's defaults, as they were in the video.

Letters: B batch, T time, C channels (n_embd), V vocabulary, D head size.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.models.reference import GPT, Block, FeedForward, Head, LayerNorm, MultiHeadAttention


class LanguageModel(nn.Module):
    """What the steps share: tokens (B, T) -> logits (B, T, V), and the loss against targets.

    The loss is the negative log likelihood of the next token. A model that knows nothing gives
    each of 65 characters 1/65, and -ln(1/65) = 4.17; a fresh one is a little worse than that.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = ModelConfig(
            vocab_size=config.vocab_size,
            block_size=config.block_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
        )

    def initialise(self):
        """Draw all weights from the global generator, as a fresh model does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.reset_parameters()

    def forward(self, tokens, targets=None):
        logits = self.logits(tokens)  # (B, T, V)
        if targets is None:
            return logits, None
        # cross_entropy wants the classes in the second dimension: B*T rows of V logits
        B, T, V = logits.shape
        loss = F.cross_entropy(
            logits.view(B * T, V), targets.reshape(B * T), ignore_index=IGNORE_INDEX
        )
        return logits, loss


class BigramLanguageModel(LanguageModel):
    """[00:22:11] The simplest baseline: the next token from the identity of this one alone.

    The tokens are not talking to each other: row i of the table is what follows token i.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # each token directly reads off the logits for the next token from a lookup table
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.vocab_size)

    def logits(self, tokens):
        return self.token_embedding_table(tokens)  # (B, T, V)


class EmbeddingLanguageModel(LanguageModel):
    """[00:58:26, 01:00:18] One level of indirection: tokens as vectors, a layer, a head.

    A token is embedded by what it is and by where it stands, and logits are read off at the end.
    In between is room for a layer (B, T, C) -> (B, T, C): every step from here on is one. The
    video builds versions 1 to 3 on random vectors before it has this model to put them in.
    """

    def __init__(self, config: ModelConfig, make_layer: Callable[[ModelConfig], nn.Module]):
        super().__init__(config)
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.layer = make_layer(self.config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def logits(self, tokens):
        T = tokens.shape[1]
        tok_emb = self.token_embedding_table(tokens)  # (B, T, C)
        pos_emb = self.position_embedding_table(torch.arange(T, device=tokens.device))  # (T, C)
        x = tok_emb + pos_emb  # (B, T, C)
        x = self.layer(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


# ---- Building the self-attention -----------------------------------------------------------


class AverageWithLoops(nn.Module):
    """[00:42:13] Version 1: a token becomes the average of itself and all tokens before it.

    The weakest way to hear of the past, and very lossy: how the tokens were arranged is gone. It
    must be the past only, because the future is what the model has to predict.
    """

    def forward(self, x):
        B, T, C = x.shape
        xbow = []  # "bow" is bag of words: an average knows what was there, not in which order
        for sequence in x:  # (T, C)
            for t in range(T):
                xprev = sequence[: t + 1]  # (t+1, C)
                xbow.append(xprev.mean(dim=0))  # (C,)
        return torch.stack(xbow).view(B, T, C)


class AverageWithMatrix(nn.Module):
    """[00:47:11, 00:51:54] Version 2: the trick, a matrix product as a weighted aggregation.

    Row t of `wei` says how much of each token goes into token t: for T = 3

        1    0    0
        1/2  1/2  0
        1/3  1/3  1/3
    """

    def forward(self, x):
        T = x.shape[1]
        wei = torch.tril(x.new_ones(T, T))  # lower triangular: nothing from the future
        wei = wei / wei.sum(dim=1, keepdim=True)  # each row sums to one
        return wei @ x  # (T, T) @ (B, T, C) -> (B, T, C)


class AverageWithSoftmax(nn.Module):
    """[00:54:42] Version 3: the same matrix as a softmax of affinities that are all zero.

    Zeros say that all tokens of the past are equally interesting. Minus infinity says that tokens
    from the future cannot communicate: exp(-inf) = 0. The softmax makes each row sum to one. From
    here it is a small step to affinities that depend on the tokens themselves.
    """

    def forward(self, x):
        T = x.shape[1]
        tril = torch.tril(x.new_ones(T, T))
        wei = x.new_zeros(T, T)
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        return wei @ x  # (T, T) @ (B, T, C) -> (B, T, C)


class SelfAttention(nn.Module):
    """[01:02:00] Version 4, the crux: each token says for itself which of the past it wants.

    Every token emits a query (what am I looking for?) and a key (what do I contain?). Where they
    align the dot product is large, and that token's value comes through: x is private to the
    token, and the value is what it communicates if it is found interesting.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        T = x.shape[1]
        k = self.key(x)  # (B, T, C)
        q = self.query(x)  # (B, T, C)
        wei = q @ k.transpose(-2, -1)  # (B, T, C) @ (B, C, T) -> (B, T, T), one matrix per batch
        tril = torch.tril(x.new_ones(T, T))
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)  # (B, T, T)
        v = self.value(x)  # (B, T, C)
        return wei @ v  # (B, T, T) @ (B, T, C) -> (B, T, C)


# Six notes on attention, before it goes on:
# 1 [01:11:38] It is communication: nodes of a directed graph, each with a vector, and each takes
#   a weighted sum over the nodes that point at it. Here token t hears of the tokens 0 .. t.
# 2 [01:12:46] It has no notion of space: it works on a set of vectors. That is why tokens need a
#   position embedding.
# 3 [01:13:40] The examples of a batch never talk to each other.
# 4 [01:14:14] This is a decoder block, by the triangular mask. Delete the mask and all tokens talk
#   to all: an encoder block.
# 5 [01:15:39] It is self-attention because keys and values come from the same x as the queries. In
#   cross-attention they come from elsewhere.
# 6 [01:16:56] "Scaled" attention multiplies `wei` by 1/sqrt(head size). For q and k of variance 1
#   the variance of `wei` is then 1 too, and the softmax of a fresh model stays diffuse instead of
#   choosing a single token. `Head` in reference.py does so.


# ---- Building the transformer --------------------------------------------------------------


def one_head(config: ModelConfig) -> nn.Module:
    """[01:19:11] A single head of self-attention, as wide as the model, in the network."""
    return Head(replace(config, n_head=1))


class HeadsSideBySide(nn.Module):
    """[01:21:59] Several heads in parallel, each narrower, their outputs side by side.

    Tokens have many things to talk about (find the vowels, the consonants, what stands where), so
    it helps to have several independent channels of communication.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = nn.ModuleList([Head(config) for _ in range(config.n_head)])

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, D) each -> (B, T, C)


def heads_and_feed_forward(config: ModelConfig) -> nn.Module:
    """[01:24:25] Communication, then computation, by each token on its own.

    So far the tokens looked at each other but had no time to think about what they had found.
    """
    return nn.Sequential(
        HeadsSideBySide(config), nn.Linear(config.n_embd, config.n_embd), nn.ReLU()
    )


class ResidualBlock(nn.Module):
    """[01:26:48] Communication and computation fork off from x and are added back to it.

    Deep networks are hard to optimise. Addition hands its gradient to both branches alike, so the
    gradient has a free way from the loss down to the input past all blocks, and the blocks come
    in over time. The projections lead back into the way. As in the paper, the feed-forward is
    four times wider inside.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sa = MultiHeadAttention(config)
        self.ffwd = FeedForward(config)

    def forward(self, x):
        x = x + self.sa(x)
        x = x + self.ffwd(x)
        return x


def residual_blocks(config: ModelConfig) -> nn.Module:
    return nn.Sequential(*[ResidualBlock(config) for _ in range(config.n_layer)])


def normalised_blocks(config: ModelConfig) -> nn.Module:
    """[01:32:51] LayerNorm: each token's channels to mean 0 and variance 1, then gain and bias.

    BatchNorm does that to the columns, over the batch; LayerNorm does it to the rows. So there are
    no running averages, and training and test do the same. It stands before each transformation
    (the paper had it after; today it is before) and once more at the end.
    """
    return nn.Sequential(*[Block(config) for _ in range(config.n_layer)], LayerNorm(config))


# [01:37:49] Scaling up: n_layer and n_head as numbers to choose, and dropout against overfitting,
# at the end of every branch and on the affinities. In each step it shuts off a random part of the
# network, so that an ensemble of sub-networks is trained. That model is `GPT` in reference.py; its
# weights start smaller, as in the lecture's published file, which mended that after the video.


def _with_layer(make_layer) -> Callable[[ModelConfig], nn.Module]:
    return lambda config: EmbeddingLanguageModel(config, make_layer)


STEPS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "bigram": BigramLanguageModel,
    "average-loops": _with_layer(lambda config: AverageWithLoops()),
    "average-matrix": _with_layer(lambda config: AverageWithMatrix()),
    "average-softmax": _with_layer(lambda config: AverageWithSoftmax()),
    "self-attention": _with_layer(SelfAttention),
    "one-head": _with_layer(one_head),
    "many-heads": _with_layer(HeadsSideBySide),
    "feed-forward": _with_layer(heads_and_feed_forward),
    "residual": _with_layer(residual_blocks),
    "layer-norm": _with_layer(normalised_blocks),
    "dropout": GPT,
}
