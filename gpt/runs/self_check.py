"""Before the first run on a GPU: one batch's loss and gradients by two tables of kernels."""

import contextlib
import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

import torch

from .. import UserError, hardware
from ..config.model import ModelConfig
from ..config.train import TrainConfig
from ..data.corpus import NO_CACHE, cache_dir
from ..data.dataset import Dataset
from ..files import read_json, write_whole
from ..models.build import build
from ..training.precision import Precision

LAYERS = 2  # of the model that is compared: all layers are alike
ROWS = 8  # of the batch, at most
# largest error of all gradients relative to their norm
BOUNDS = {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float32: 1e-3}
CACHE = "selfcheck.json"
REPORT = "please report the output of `python -m kernels.doctor --check`"


class Comparison(NamedTuple):
    loss: float
    expected: float
    error: float  # of all gradients, relative to their norm
    bound: float

    @property
    def is_good(self) -> bool:
        difference = abs(self.loss - self.expected)
        return self.error <= self.bound and difference <= self.bound * abs(self.expected)

    def __str__(self):
        losses = f"loss {self.loss:.4f} against {self.expected:.4f}"
        return f"{losses}, relative error of the gradients {100 * self.error:.2g}%"


def checked(ops, fallback, check, data: Dataset, config: TrainConfig, precision: Precision):
    """`ops`, or `fallback` if their results differ on this GPU.

    Compares once per GPU, software and model, and caches a good result. `check` is the module
    `kernels.check`. Raises UserError if something is wrong and --kernels is not auto.
    """
    model = {"model": config.model.to_dict(), "rows": config.batch_size, "dtype": config.dtype}
    facts = json.dumps(check.facts(ops, precision.device) | model, sort_keys=True)
    key, folder = hashlib.sha256(facts.encode()).hexdigest()[:32], cache_dir()
    try:
        cached = read_json(folder / CACHE) if folder else {}
    except UserError:  # missing or damaged
        cached = {}
    if key in cached:
        return ops
    found = _good_or_reason(ops, fallback, check, data, config, precision)
    if isinstance(found, Comparison):
        if folder is None:
            print(NO_CACHE)
            return ops
        with contextlib.suppress(OSError):  # then the next run compares again
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps(cached | {key: str(found)}, indent=1)
            write_whole(folder / CACHE, content.encode())
        return ops
    where = f"--kernels {config.kernels} on {hardware.device_name(precision.device)}"
    must_stop = config.kernels != "auto"
    try:
        hardware.synchronise(precision.device)
    except RuntimeError:  # after an illegal access every further call fails
        must_stop = True
    if must_stop:
        raise UserError(f"{where}: {found}; use --kernels torch, and {REPORT}")
    print(f"{where}: {found}; using PyTorch's operations instead; {REPORT}")
    return fallback


def _good_or_reason(ops, fallback, check, data, config, precision) -> Comparison | str:
    """A good comparison, which is printed, or why `ops` must not be used."""
    try:
        found = compare(ops, fallback, data, config, precision)
    except check.RAISED as error:
        if hardware.out_of_memory(error):
            raise  # the kernels are not to blame
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not found.is_good:
        return f"kernels differ from PyTorch: {found}"
    print(f"kernels checked against PyTorch: {found}")
    return found


def compare(ops, fallback, data: Dataset, config: TrainConfig, precision: Precision) -> Comparison:
    """`ops` against `fallback`: the same weights and batch, no dropout, two layers."""
    layers = min(config.model.n_layer, LAYERS)
    model_config = replace(config.model, n_layer=layers, dropout=0.0, embedding_dropout=0.0)
    rows = min(config.batch_size, ROWS)
    x, y = data.batch(config.seed, 0, rows, model_config.block_size)
    loss, gradients = _differentiate(model_config, ops, x, y, precision)
    expected, exact = _differentiate(model_config, fallback, x, y, precision)
    error = (gradients - exact).norm() / exact.norm()
    return Comparison(loss, expected, error.item(), BOUNDS[precision.dtype])


def _differentiate(config: ModelConfig, ops, x, y, precision: Precision):
    """The loss, and the gradients of all parameters as one vector in fp64."""
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # leaves the run's generators as they are
        torch.manual_seed(0)
        model = build(config, ops)
        model.initialise()
    model.to(precision.device)
    with precision.autocast():
        loss = model(x, y)[1]
    scale = 1024.0 if precision.dtype == torch.float16 else 1.0  # small gradients would underflow
    (scale * loss).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat([one.double().flatten() for one in gradients]) / scale
