"""The stages of the lecture, from a bigram model to the GPT of `gpt/models/reference.py`.

Read this file from top to bottom while you watch "Let's build GPT: from scratch, in code, spelled
out"; the times in square brackets are chapters of the video. Every stage is a model that trains:
`python train.py --lecture NAME` takes a name from `STAGES`, the table at the end. Each one turns
tokens into logits for the next token. What changes is how a token learns about the tokens before
it. Only the sizes in the config have an effect here: every switch is set as in the video, and
weights are initialised by PyTorch's defaults, as they were there.

Letters: B batch, T time, C channels (n_embd), V vocabulary, D head size.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F

from ..config.model import IGNORE_INDEX, ModelConfig
from .reference import GPT, Block, FeedForward, Head, MultiHeadAttention, make_norm


class LanguageModel(nn.Module):
    """What all stages share: tokens (B, T) -> logits (B, T, V), and the loss against targets.

    The loss is the negative log likelihood of the next token. A model that knows nothing gives each
    of 65 characters a probability of 1/65, for a loss of -ln(1/65) = 4.17; a freshly initialised
    model is a little worse than that.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        self.config = ModelConfig(**{name: getattr(config, name) for name in sizes})

    def initialise(self) -> None:
        """Draw all weights anew from the global generator."""
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
    """[00:22:11] The simplest baseline: predict the next token from the current one alone.

    The tokens do not talk to each other yet: row i of the table has the logits of what follows
    token i.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # each token directly reads off the logits for the next token from a lookup table
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.vocab_size)

    def logits(self, tokens):
        return self.token_embedding_table(tokens)  # (B, T, V)


class EmbeddingLanguageModel(LanguageModel):
    """[00:58:26, 01:00:18] One level of indirection: token vectors, a layer, a language model head.

    A token is embedded by its identity and by its position, and the head turns the result into
    logits. In between there is room for one layer (B, T, C) -> (B, T, C), and every stage from
    here on is such a layer. The video tries versions 1 to 3 on random vectors before it has this
    model to put them in.
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
    """[00:42:13] Version 1: each token becomes the average of itself and all tokens before it.

    This is the weakest form of communication, and very lossy: the order of the tokens is gone. It
    may only look at the past, because the future is what the model has to predict.
    """

    def forward(self, x):
        B, T, C = x.shape
        xbow = []  # "bow" means bag of words: an average knows which words, but not their order
        for sequence in x:  # (T, C)
            for t in range(T):
                xprev = sequence[: t + 1]  # (t+1, C)
                xbow.append(xprev.mean(dim=0))  # (C,)
        return torch.stack(xbow).view(B, T, C)


class AverageWithMatrix(nn.Module):
    """[00:47:11, 00:51:54] Version 2: the trick, a matrix product as a weighted aggregation.

    Row t of `wei` holds the weight of each token in the average for token t. For T = 3:

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
    """[00:54:42] Version 3: the same matrix, as the softmax of affinities that are all zero.

    Zero means that all tokens of the past are equally interesting. Minus infinity means that tokens
    of the future cannot communicate, since exp(-inf) = 0. The softmax makes each row sum to one.
    From here it is a small step to affinities that depend on the tokens themselves.
    """

    def forward(self, x):
        T = x.shape[1]
        tril = torch.tril(x.new_ones(T, T))
        wei = x.new_zeros(T, T)
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        return wei @ x  # (T, T) @ (B, T, C) -> (B, T, C)


class SelfAttention(nn.Module):
    """[01:02:00] Version 4, the crux: each token decides for itself which tokens matter to it.

    Every token emits a query (what am I looking for?) and a key (what do I contain?). If a query
    and a key align, their dot product is large, and the token with that key passes on its value. x
    is private to a token; the value is what it communicates to those that find it interesting.
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


# Six notes on attention:
# 1 [01:11:38] Attention is communication. The nodes of a directed graph have a vector each, and
#   each node takes a weighted sum over the nodes that point to it. Here the tokens 0 .. t point to
#   token t.
# 2 [01:12:46] Attention has no notion of space: it works on a set of vectors. That is why tokens
#   need a position embedding.
# 3 [01:13:40] The examples of a batch never talk to each other.
# 4 [01:14:14] The triangular mask makes this a decoder block. Delete the mask, so that all tokens
#   talk to each other, and it is an encoder block.
# 5 [01:15:39] It is self-attention because keys and values come from the same x as the queries. In
#   cross-attention they come from elsewhere.
# 6 [01:16:56] "Scaled" attention multiplies `wei` by 1/sqrt(head size). If q and k have variance 1,
#   then so has `wei`, and the softmax of a fresh model stays diffuse instead of picking a single
#   token. `Head` in reference.py does this.


# ---- Building the transformer --------------------------------------------------------------


def one_head(config: ModelConfig) -> nn.Module:
    """[01:19:11] A single head of self-attention, as wide as the model."""
    return Head(replace(config, n_head=1))


class HeadsSideBySide(nn.Module):
    """[01:21:59] Several narrower heads in parallel, with their outputs side by side.

    Tokens have a lot to talk about (where are the vowels, where are the consonants?), so it helps
    to have several independent channels of communication.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = nn.ModuleList([Head(config) for _ in range(config.n_head)])

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, D) each -> (B, T, C)


def heads_and_feed_forward(config: ModelConfig) -> nn.Module:
    """[01:24:25] Communication, followed by computation, which each token does on its own.

    Until now the tokens looked at each other but had no time to think about what they found.
    """
    return nn.Sequential(
        HeadsSideBySide(config), nn.Linear(config.n_embd, config.n_embd), nn.ReLU()
    )


class ResidualBlock(nn.Module):
    """[01:26:48] Communication and computation fork off from x and are added back to it.

    Deep networks are hard to optimise. Addition passes its gradient to both branches unchanged, so
    there is a gradient highway from the loss to the input past all blocks, which contribute more
    and more during training. The projections lead back onto that highway. As in the paper, the
    inner layer of the feed-forward is four times as wide.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sa = MultiHeadAttention(config)
        self.ffwd = FeedForward(config)

    def forward(self, x):
        x = x + self.sa(x)
        x = x + self.ffwd(x)
        return x


def normalised_blocks(config: ModelConfig) -> nn.Module:
    """[01:32:51] LayerNorm: scale each token's channels to mean 0 and variance 1.

    BatchNorm normalises the columns, over the batch; LayerNorm normalises the rows. So it needs no
    running averages, and training and testing are the same. A learned gain and bias follow. The
    norm comes before each transformation (in the paper it came after), and once more at the end.
    """
    return nn.Sequential(*[Block(config) for _ in range(config.n_layer)], make_norm(config))


# [01:37:49] Scaling up: n_layer and n_head become options, and dropout, at the end of every branch
# and on the affinities, counters overfitting. In each training step it turns off a random part of
# the network, which trains an ensemble of sub-networks. That model is `GPT` in reference.py; its
# weights start smaller, as in the file that the lecture published, which was corrected after the
# video.


LAYERS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "average-loops": lambda config: AverageWithLoops(),
    "average-matrix": lambda config: AverageWithMatrix(),
    "average-softmax": lambda config: AverageWithSoftmax(),
    "self-attention": SelfAttention,
    "one-head": one_head,
    "many-heads": HeadsSideBySide,
    "feed-forward": heads_and_feed_forward,
    "residual": lambda config: nn.Sequential(*map(ResidualBlock, [config] * config.n_layer)),
    "layer-norm": normalised_blocks,
}
STAGES: dict[str, Callable[[ModelConfig], LanguageModel | GPT]] = {
    "bigram": BigramLanguageModel,
    **{name: partial(EmbeddingLanguageModel, make_layer=layer) for name, layer in LAYERS.items()},
    "dropout": GPT,
}
