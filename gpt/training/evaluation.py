"""The loss over the validation split, or over any text."""

import math
from functools import partial

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt import UserError
from gpt.config.model import IGNORE_INDEX
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import Tokenizer
from gpt.training import distributed
from gpt.training.cuda_graph import CaptureError, capture, on_side_stream
from gpt.training.step import WARM_UP, Precision

EVALUATION_TOKENS = 16_384  # in one forward pass


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, config: TrainConfig, precision: Precision, loss_of=None
) -> float:
    """The mean loss over the whole validation split, every position once, without dropout.

    Every rank takes its share of the windows. With `eval_iters` it is nanoGPT's estimate instead:
    the mean over that many random batches. `loss_of` is a GraphedLoss of the model, or none.
    """
    model.eval()
    loss_of = loss_of or EagerLoss(model, precision)
    block_size = config.model.block_size
    if config.eval_iters:
        batches = (
            data.batch(config.seed, i * config.batch_size, config.batch_size, block_size, "val")
            for i in range(config.eval_iters)
        )
    else:
        batches = of_this_rank(equal_batches(*data.validation(block_size)))
    losses, counts = [], []
    for x, y in batches:
        losses.append(loss_of(x, y))
        counts.append((y != IGNORE_INDEX).sum())
    model.train()
    # read once; a batch without a target has no loss, and counts nothing
    losses, counts = (torch.stack(each).cpu().double() for each in (losses, counts))
    total = torch.stack([(losses * counts)[counts > 0].sum(), counts.sum()])
    loss_sum, count = distributed.total_on(precision.device, total)
    return loss_sum / count


@torch.no_grad()
def answered(model: nn.Module, x, y, vocab_size: int, precision: Precision) -> torch.Tensor:
    """Of each row of x and y (N, T), whether each token that counts is the likeliest: (N,).

    That is then what the model writes by itself.
    """
    model.eval()
    right = []
    rows = max(1, EVALUATION_TOKENS // x.shape[1])
    for part, targets in zip(x.split(rows), y.split(rows), strict=True):
        with precision.autocast():
            logits = model(part)[0][..., :vocab_size]  # (rows, T, V)
        right.append(((logits.argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(1))
    model.train()
    return torch.cat(right)


def text_scores(model: nn.Module, tokenizer: Tokenizer, text: str, precision: Precision) -> dict:
    """What a text costs a model: `loss` in nats per token, `perplexity`, `bits_per_byte`.

    Every token but the first is predicted once, as in `evaluate`: the text is cut into windows of
    a block, and a token is predicted from the 1 to block_size tokens before it in its window. To
    slide the window would give each a longer context, and a lower loss.

    Perplexities are of one tokenizer; bits per byte, loss / ln 2 * tokens / bytes of UTF-8 (Gao et
    al. 2020), can be held against those of another.
    """
    tokens, size = torch.from_numpy(tokenizer.encode(text)), len(text.encode("utf-8"))
    if len(tokens) < 2:
        raise UserError(f"the text has {len(tokens)} tokens, and at least two are needed")
    tokens = tokens.to(precision.device)
    data = Data("text", tokens, tokens, tokenizer, precision.device)
    loss = float(evaluate(model, data, TrainConfig(model=model.config), precision))
    scores = {"loss": loss, "perplexity": math.exp(loss)}
    scores["bits_per_byte"] = loss / math.log(2) * len(tokens) / size
    return scores | {"tokens": len(tokens), "bytes": size}


def equal_batches(x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Split x and y (N, T) into batches of one shape: what is compiled or captured fits them all.

    The last batch is padded with rows whose targets do not count.
    """
    most = max(1, EVALUATION_TOKENS // x.shape[1])
    count = -(-len(x) // most)
    rows = -(-len(x) // count)
    added = (0, 0, 0, count * rows - len(x))  # rows after the last
    x, y = F.pad(x, added), F.pad(y, added, value=IGNORE_INDEX)
    return list(zip(x.split(rows), y.split(rows), strict=True))


def of_this_rank(batches: list) -> list:
    """Its share; as many for every rank, since ranks that share a model compute it together."""
    rank, world = distributed.rank(), distributed.world()
    share = batches[rank::world]
    if len(share) * world < len(batches):
        x, y = batches[0]
        share.append((x, torch.full_like(y, IGNORE_INDEX)))
    return share


class EagerLoss:
    """The loss () of a batch."""

    def __init__(self, model: nn.Module, precision: Precision):
        self.model, self.precision = model, precision

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with self.precision.autocast():
            return self.model(x, y)[1]


class GraphedLoss(EagerLoss):
    """The same as one CUDA graph, for batches of as many rows as the first has."""

    def __init__(self, model: nn.Module, precision: Precision):
        super().__init__(model, precision)
        self.x = self.y = self.graph = None
        self.is_eager = False

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.graph is None and not self.is_eager:
            self.capture(x, y)
        if self.is_eager:
            return super().__call__(x, y)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it

    def capture(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x.clone(), y.clone()
        forward = partial(super().__call__, self.x, self.y)
        on_side_stream(lambda: [forward() for _ in range(WARM_UP)])
        try:
            self.graph, self.loss = capture(forward)
        except CaptureError as error:
            print(f"evaluation cannot be captured as a CUDA graph ({error}); it is eager")
            self.is_eager = True
