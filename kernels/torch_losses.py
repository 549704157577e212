"""The losses of `kernels/torch_ops.py`."""

from torch import Tensor, float64
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> Tensor:
    """The loss of logits (..., V) and targets (...); see `kernels.cross_entropy`."""
    exact = logits.reshape(-1, logits.shape[-1])
    exact = exact if logits.dtype == float64 else exact.float()
    exact = softcap * (exact / softcap).tanh() if softcap else exact
    flat, weight = targets.reshape(-1), weight if weight is None else weight.to(exact.dtype)
    loss = F.cross_entropy(
        *(exact, flat, weight),
        ignore_index=ignore_index,
        reduction="sum" if reduction == "mean" else reduction,
        label_smoothing=label_smoothing,
    )
    counted = flat != ignore_index
    if reduction == "mean":
        total = counted if weight is None else weight[flat.where(counted, 0)].where(counted, 0)
        total = total.sum()
        loss = loss / total.where(total != 0, 1)  # 0, not NaN, when none counts
    if z_loss:
        squares = z_loss * exact.logsumexp(-1).square().where(counted, 0)
        squares = squares if reduction == "none" else squares.sum()
        loss = loss + (squares / counted.sum().clamp(min=1) if reduction == "mean" else squares)
    return loss.view(targets.shape) if reduction == "none" else loss


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> Tensor:
    """The loss of the logits x weight^T + bias; see `kernels.linear_cross_entropy`."""
    return cross_entropy(
        *(F.linear(x, weight, bias), targets),
        weight=class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
    )
