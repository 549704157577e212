"""The loss over the validation split or over any text, and the accuracy on a task."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt import UserError
from gpt.config.model import IGNORE_INDEX
from gpt.data.batches import windows
from gpt.data.dataset import Batch, Dataset, Task
from gpt.data.tokenizers import Tokenizer
from gpt.training import distributed
from gpt.training.cuda_graph import GraphedFunction
from gpt.training.precision import Precision

EVALUATION_TOKENS = 16_384  # in one forward pass

BatchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x, y -> loss ()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    batch_loss: BatchLoss | None = None,
) -> float:
    """The mean loss over all targets of `batches`, without dropout, on all ranks together.

    `batch_loss` computes the loss of one batch: a `GraphedLoss` of the model, or by default
    `eager_loss`.
    """
    model.eval()
    batch_loss = batch_loss or eager_loss(model, precision)
    losses, counts = [], []
    for x, y in batches:
        losses.append(batch_loss(x, y))
        counts.append((y != IGNORE_INDEX).sum())
    model.train()
    # read once; a batch without targets has no loss
    loss, count = (torch.stack(each).cpu().double() for each in (losses, counts))
    total = torch.stack([(loss * count)[count > 0].sum(), count.sum()])
    loss_sum, targets = distributed.all_reduce_sum(total).tolist()
    return loss_sum / targets


def validation_batches(data: Dataset, block_size: int) -> list[Batch]:
    """This rank's share of the whole validation split, every position predicted once."""
    return share_of_rank(equal_batches(*data.validation(block_size)))


def random_batches(
    data: Dataset, seed: int, count: int, batch_size: int, block_size: int
) -> Iterator[Batch]:
    """`count` random batches of the validation split: nanoGPT's estimate of its loss."""
    for index in range(count):
        yield data.batch(seed, index * batch_size, batch_size, block_size, "val")


def equal_batches(x: torch.Tensor, y: torch.Tensor) -> list[Batch]:
    """Split x and y (N, T) into batches of one shape, so that a single graph serves all of them.

    The last batch is padded with rows whose targets are ignored.
    """
    most = max(1, EVALUATION_TOKENS // x.shape[1])
    count = -(-len(x) // most)
    rows = -(-len(x) // count)
    padding = (0, 0, 0, count * rows - len(x))  # rows after the last
    x, y = F.pad(x, padding), F.pad(y, padding, value=IGNORE_INDEX)
    return list(zip(x.split(rows), y.split(rows), strict=True))


def share_of_rank(batches: list[Batch]) -> list[Batch]:
    """Every world_size-th batch, padded to the same number on every rank.

    Ranks that share a model compute each batch together, so they need the same number.
    """
    world_size = distributed.world_size()
    share = batches[distributed.rank() :: world_size]
    if len(share) * world_size < len(batches):
        x, y = batches[0]
        share.append((x, torch.full_like(y, IGNORE_INDEX)))
    return share


def eager_loss(model: nn.Module, precision: Precision) -> BatchLoss:
    """A function x, y -> loss () of the batch."""

    def batch_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            return model(x, y)[1]

    return batch_loss


class GraphedLoss:
    """The same as one CUDA graph, for batches of the shape of the first one."""

    def __init__(self, model: nn.Module, precision: Precision):
        self.eager = eager_loss(model, precision)
        self.graphed = GraphedFunction(lambda: self.eager(self.x, self.y), "evaluation")
        self.x: torch.Tensor
        self.y: torch.Tensor

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "x"):
            self.x, self.y = torch.empty_like(x), torch.empty_like(y)
        self.x.copy_(x)
        self.y.copy_(y)
        return self.graphed().clone()  # the next replay overwrites it


@torch.no_grad()
def task_accuracy(
    model: nn.Module, data: Dataset, block_size: int, precision: Precision
) -> dict[str, float]:
    """The accuracy of greedy decoding on the held-out problems of a task; {} for a plain text.

    Greedy decoding produces an answer if every target is the most likely token given the targets
    before it.
    """
    if not isinstance(data, Task):
        return {}
    model.eval()
    matches = []
    x, y = data.validation(block_size)
    rows = max(1, EVALUATION_TOKENS // x.shape[1])
    for part, targets in zip(x.split(rows), y.split(rows), strict=True):
        with precision.autocast():
            logits = model(part)[0][..., : data.tokenizer.vocab_size]  # (rows, T, V)
        matches.append(((logits.argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(1))
    model.train()
    return data.accuracy(torch.cat(matches))


def text_metrics(
    model: nn.Module, tokenizer: Tokenizer, text: str, block_size: int, precision: Precision
) -> dict[str, float]:
    """`loss` in nats per token, `perplexity` and `bits_per_byte` of a text.

    Every token but the first is predicted once: the text is cut into windows of block_size tokens,
    and a token is predicted from the tokens before it in its window. Sliding the window would give
    each token a longer context, and a lower loss.

    Perplexities are comparable only between models with the same tokenizer; bits per byte, loss /
    ln 2 * tokens / bytes of UTF-8 (Gao et al. 2020), between all models.
    """
    tokens, size = torch.from_numpy(tokenizer.encode(text)), len(text.encode("utf-8"))
    if len(tokens) < 2:
        raise UserError(f"the text has {len(tokens)} tokens; at least two are needed")
    x, y = windows(tokens.to(precision.device), block_size)
    loss = evaluate(model, share_of_rank(equal_batches(x, y)), precision)
    scores = {"loss": loss, "perplexity": math.exp(loss)}
    scores["bits_per_byte"] = loss / math.log(2) * len(tokens) / size
    return scores | {"tokens": len(tokens), "bytes": size}
