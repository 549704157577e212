"""Before the first run on a GPU: one batch's loss and gradients by two tables of operations."""

import contextlib
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from gpt import UserError, hardware
from gpt.config.model import ModelConfig
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.corpus import cache_dir
from gpt.models.build import build
from gpt.training.step import Precision

LAYERS = 2  # of the model that is compared: all layers are alike
ROWS = 8  # of the batch, at most
BOUNDS = {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float32: 1e-3}  # of the gradients' norm
REPORT = "please report what `python -m kernels.doctor --check` prints"


class Comparison(NamedTuple):
    loss: float
    expected: float
    error: float  # of all gradients, as a share of their norm
    bound: float

    @property
    def is_good(self) -> bool:
        apart = abs(self.loss - self.expected)
        return self.error <= self.bound and apart <= self.bound * abs(self.expected)

    def __str__(self):
        return (
            f"loss {self.loss:.4f} / {self.expected:.4f}, gradients within {100 * self.error:.2g}%"
        )


def trusted(ops, peer, check, data: Data, config: TrainConfig, precision: Precision):
    """`ops`, or of it what this GPU computes as the table `peer` does, and `peer`'s for the rest.

    Compares once for each GPU, its software and model, and remembers what was good. `check` is the
    module `kernels.check`. Raises UserError where something is wrong and --kernels is not auto.
    """
    verdicts = Verdicts(check.facts(ops, precision.device), config)
    if verdicts.found_good():
        return ops
    reason = _reason(ops, peer, check, data, config, precision, verdicts)
    if reason is None:
        return ops
    where = f"--kernels {config.kernels} on {hardware.device_name(precision.device)}"
    try:
        hardware.synchronise(precision.device)
    except RuntimeError:  # the GPU refuses everything after an illegal access
        raise UserError(f"{where}: {reason}; use --kernels torch, and {REPORT}") from None
    if config.kernels != "auto":
        raise UserError(f"{where}: {reason}; use --kernels torch, and {REPORT}")
    wrong = check.failures(ops, precision.device, [precision.dtype])
    some = ops._replace(**{name: getattr(peer, name) for name in wrong})
    if not wrong or _reason(some, peer, check, data, config, precision, verdicts):
        wrong, some = ops._fields, peer
    print(f"{where}: {reason}; PyTorch serves {', '.join(wrong)}; {REPORT}")
    return some


def _reason(ops, peer, check, data, config, precision, verdicts) -> str | None:
    """Why `ops` is not to be trusted, or None; what is good is printed and remembered."""
    try:
        found = compare(ops, peer, data, config, precision)
    except check.RAISED as error:
        if isinstance(error, RuntimeError) and hardware.out_of_memory(error):
            raise  # which says nothing of the kernels
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not found.is_good:
        return f"kernels differ from PyTorch: {found}"
    print(f"kernels checked against PyTorch: {found}")
    verdicts.remember(found)
    return None


def compare(ops, peer, data: Data, config: TrainConfig, precision: Precision) -> Comparison:
    """`ops` against the table `peer`: the same weights and batch, no dropout, two layers."""
    layers = min(config.model.n_layer, LAYERS)
    model_config = replace(config.model, n_layer=layers, dropout=0.0, embedding_dropout=0.0)
    rows = min(config.batch_size, ROWS)
    x, y = data.batch(config.seed, 0, rows, model_config.block_size)
    loss, gradients = _differentiated(model_config, ops, x, y, precision)
    expected, exact = _differentiated(model_config, peer, x, y, precision)
    apart = sum((a - b).square().sum() for a, b in zip(gradients, exact, strict=True))
    norm = sum(gradient.square().sum() for gradient in exact)
    return Comparison(loss, expected, (apart / norm).sqrt().item(), BOUNDS[precision.dtype])


def _differentiated(config: ModelConfig, ops, x, y, precision: Precision):
    """The loss and the gradients of all parameters, in fp64."""
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the run's numbers are drawn as if nothing had been
        torch.manual_seed(0)
        model = build(config, ops)
        model.initialise()
    model.to(precision.device)
    with precision.autocast():
        loss = model(x, y)[1]
    scale = 1024.0 if precision.dtype == torch.float16 else 1.0  # small gradients would be 0
    (scale * loss).backward()
    return loss.item(), [weight.grad.double() / scale for weight in model.parameters()]


class Verdicts:
    """What was found good on this machine, in a file of the cache folder."""

    def __init__(self, facts: dict, config: TrainConfig):
        self.path = cache_dir() / "selfcheck.json"
        what = facts | {"model": asdict(config.model), "rows": config.batch_size}
        text = json.dumps(what | {"dtype": config.dtype}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]

    def found_good(self) -> bool:
        return self.key in _read(self.path)

    def remember(self, found: Comparison) -> None:
        with contextlib.suppress(OSError):  # then the next run compares again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_read(self.path) | {self.key: str(found)}, indent=1)
            self.path.write_text(f"{text}\n")


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
