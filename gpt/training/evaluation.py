"""The losses over both splits, and the accuracy on a task."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
import torch.nn as nn
from torch.nn import functional as F

from ..config.model import IGNORE_INDEX
from ..data.arithmetic import Addition
from ..data.dataset import Batch, Dataset
from . import distributed
from .cuda_graph import GraphedFunction
from .gradients import stop_if
from .precision import Precision

EVALUATION_TOKENS = 16_384  # in one forward pass
TRAINING_TOKENS = 1 << 18  # of the training split in an evaluation: standard error about 0.005 nats


class BatchLoss:
    """x, y -> loss () of the batch; with `graph` as one CUDA graph for batches of equal shape."""

    def __init__(self, model: nn.Module, precision: Precision, graph: bool = False):
        self.model, self.precision, self.graph = model, precision, graph
        self.graphed = GraphedFunction(lambda: self.eager(self.x, self.y), "evaluation")
        self.x: torch.Tensor
        self.y: torch.Tensor

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not self.graph:
            return self.eager(x, y)
        if not hasattr(self, "x"):
            self.x, self.y = torch.empty_like(x), torch.empty_like(y)
        self.x.copy_(x)
        self.y.copy_(y)
        return self.graphed().clone()  # the next replay overwrites it

    def eager(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with self.precision.autocast():
            return self.model(x, y)[1]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    batch_loss: BatchLoss | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> float:
    """The mean loss over all targets of `batches`, without dropout, on all ranks together.

    `batch_loss` is that of the model and the precision; by default it runs eagerly. Raises Stopped
    as soon as `must_stop`, on any rank, which all have the same number of batches.
    """
    model.eval()
    batch_loss = batch_loss or BatchLoss(model, precision)
    pairs = ((batch_loss(x, y), (y != IGNORE_INDEX).sum()) for x, y in batches)
    total = torch.zeros(2, dtype=torch.float64)
    # losses are read together from a GPU, which computes meanwhile
    at_once = 1 if precision.device.type == "cpu" else 64
    while some := list(islice(pairs, at_once)):  # a batch without targets has no loss
        stop_if(must_stop)
        loss, count = (torch.stack(each).cpu().double() for each in zip(*some, strict=True))
        total += torch.stack([(loss * count)[count > 0].sum(), count.sum()])
    model.train()
    loss_sum, targets = distributed.all_reduce_sum(total).tolist()
    return loss_sum / targets


def validation_batches(data: Dataset, block_size: int) -> Iterator[Batch]:
    """This rank's share of the whole validation split, every position predicted once."""
    return batches_of_splits(data, block_size)["val"]


def batches_of_splits(
    data: Dataset, block_size: int, seed: int = 0, eval_iters: int = 0, batch_size: int = 0
) -> dict[str, Iterator[Batch]]:
    """What an evaluation computes the losses of: this rank's share of `train` and `val`.

    With `eval_iters`, so many random batches of each split, as in nanoGPT's estimate_loss. Without,
    the whole validation split, and as many random rows of the training split, at most
    TRAINING_TOKENS. These rows are the same at every evaluation, and a sample of the split that has
    nothing to do with the rows that a run with this seed trains on.
    """

    def random(split: str, count: int, rows: int) -> Iterator[Batch]:
        return shared(lambda i: data.batch(~seed, i * rows, rows, block_size, split), count, rows)

    if eval_iters:
        return {split: random(split, eval_iters, batch_size) for split in ("train", "val")}
    total = data.validation_rows(block_size)
    count = -(-total // max(1, EVALUATION_TOKENS // block_size))
    rows = -(-total // count)  # one shape, so that one graph serves all batches
    val = shared(lambda i: data.validation(block_size, i * rows, rows), count, rows)
    most = -(-TRAINING_TOKENS // (rows * block_size))
    return {"train": random("train", min(count, most), rows), "val": val}


def shared(batch: Callable[[int], Batch], count: int, rows: int) -> Iterator[Batch]:
    """This rank's share of `batch(0)` to `batch(count - 1)`, made one after the other.

    Each is padded to `rows` rows, whose targets are ignored. Every rank has the same number, since
    `evaluate` asks all of them whether to stop: one of them without targets if need be.
    """
    world = distributed.world_size()
    for index in range(distributed.rank(), -(-count // world) * world, world):
        x, y = batch(min(index, count - 1))
        y = y if index < count else torch.full_like(y, IGNORE_INDEX)
        padding = (0, 0, 0, rows - len(x))
        yield F.pad(x, padding), F.pad(y, padding, value=IGNORE_INDEX)  # contiguous copies


@torch.no_grad()
def task_accuracy(
    model: nn.Module,
    data: Dataset,
    block_size: int,
    precision: Precision,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The accuracy of greedy decoding on the held-out problems of a task; {} for a plain text.

    Greedy decoding produces an answer if every target is the most likely token given the targets
    before it. Raises Stopped as soon as `must_stop`, on any rank.
    """
    if not isinstance(data, Addition):
        return {}
    model.eval()
    matches = []
    rows = max(1, EVALUATION_TOKENS // block_size)
    for first in range(0, data.validation_rows(block_size), rows):
        x, targets = data.validation(block_size, first, rows)
        with precision.autocast():
            logits = model(x)[0][..., : data.tokenizer.vocab_size]  # (rows, T, V)
        stop_if(must_stop)
        matches.append(((logits.argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(1))
    model.train()
    return {"accuracy": torch.cat(matches).double().mean().item()}
