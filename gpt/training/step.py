"""One training step: forward, backward, clipping, update; and the same as one CUDA graph."""

import contextlib
import math

import torch
import torch.nn as nn

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.training import distributed
from gpt.training.cuda_graph import CaptureError, capture, on_side_stream
from gpt.training.optimizers import learning_rate_scale, set_learning_rates

WARM_UP = 3  # eager steps before a capture: every kernel loaded, every buffer allocated


class Precision:
    """In which dtype matrix products run; weights and optimizer state stay fp32."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        # fp16 has no room for small gradients: the loss is scaled up, and the gradients down again
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # fp32 is for parity; beside 16 bits the few products left in fp32 may be TF32
        torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Step:
    """Calling it with a step number trains the model by that step and returns the loss ().

    Step s of a run sees rows s*R to (s+1)*R - 1 of the data, R = passes * ranks * batch_size: N
    ranks see together what one would see with N times the batch.
    """

    def __init__(self, model: nn.Module, optimizers, data: Data, config: TrainConfig, precision):
        self.model, self.optimizers, self.data = model, optimizers, data
        self.config, self.precision = config, precision
        self.weights = list(model.parameters())  # a walk through all modules, once
        self.passes = passes_per_step(config)
        self.rows = self.passes * distributed.world() * config.batch_size  # in a step
        self.skipped = 0  # steps, by --nan skip
        # an optimizer that clips as it updates, where it has all weights
        alone = len(optimizers) == 1 and hasattr(optimizers[0], "clip_grad_norm")
        self.fused = optimizers[0] if alone else None

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.optimizers, learning_rate_scale(step, self.config))
        loss, bad = self.backward(step)
        if self.is_good(step, loss, bad):
            self.update()
        self.precision.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return loss

    def is_good(self, step: int, loss: torch.Tensor, bad: torch.Tensor) -> bool:
        """Whether the step may change the weights; waits for the device."""
        bad, loss = bad.item(), loss.item()
        if not distributed.any_rank(bad or not math.isfinite(loss)):
            return True
        if self.precision.scaler.is_enabled() and math.isfinite(loss):
            return False  # the scale was too large, and will be smaller
        self.refuse_or_skip(step, loss, bad)
        return False

    def refuse_or_skip(self, step: int, loss: float, bad: float, count: int = 1) -> None:
        """What `--nan` asks for after `count` steps that were not finite, `step` the last."""
        what = (
            f"step {step}: the loss is {loss:.4g} and the gradients are "
            f"{'not finite' if bad else 'finite'}, "
            f"with rows {step * self.rows} to {(step + 1) * self.rows - 1}"
        )
        if self.config.nan == "stop":
            raise UserError(
                f"{what}; the weights were not changed, and the last checkpoint in "
                f"{self.config.out_dir} is good: go on from it with --resume and a lower "
                "--learning-rate, or with --nan skip"
            )
        self.skipped += count
        print(f"{what}; skipped, as {self.skipped} in all", flush=True)

    def check(self) -> None:
        """Before a checkpoint: raise or count what the device has left unsaid."""

    def backward(self, step) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss (), and whether a gradient is not finite: 0. or 1., (); gradients are clipped.

        `step` is a number, or a tensor () on the device.
        """
        config, scaler = self.config, self.precision.scaler
        total = 0.0
        for index in range(self.passes):
            batch = (step * self.passes + index) * distributed.world() + distributed.rank()
            x, y = self.data.batch(
                config.seed, batch * config.batch_size, config.batch_size, config.model.block_size
            )
            is_last = index == self.passes - 1
            with contextlib.nullcontext() if is_last else distributed.without_exchange(self.model):
                with self.precision.autocast():
                    loss = self.loss(x, y)
                if self.passes > 1:
                    loss = loss / self.passes
                scaler.scale(loss).backward()
            total = total + loss.detach()
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
        return total, self.clip()

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(x, y)[1]

    def clip(self) -> torch.Tensor:
        """Clip the gradients where that is asked for; 1. if one of them is not finite, else 0."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        plain = self.precision.device.type == "cpu" and self.config.parallel == "ddp"
        if self.fused is not None:  # the update scales the gradients as it reads them
            norm = self.fused.clip_grad_norm(self.config.grad_clip or math.inf)
        elif plain and not self.config.grad_clip:  # a sixth of the time that a norm takes there
            bad = torch.zeros(())
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, bad, torch.ones(()))
            return bad
        else:
            norm = distributed.whole(nn.utils.get_total_norm(gradients))
            if self.config.grad_clip:
                nn.utils.clip_grads_with_norm_(self.weights, self.config.grad_clip, norm)
        return (~norm.isfinite()).float()

    def update(self) -> None:
        for optimizer in self.optimizers:
            self.precision.scaler.step(optimizer)


class DeviceStep(Step):
    """The same where a card computes: the host does not wait for it, and runs ahead.

    A step that is not finite is left out on the device, where the optimizers read `found_inf`; the
    host hears of it when it waits for a loss anyway.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        device = self.precision.device
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # of the step
        # how many steps were not finite; of the last its number, loss, and whether gradients were
        self.unsaid = torch.zeros(4, dtype=torch.float64, device=device)
        self.found_inf = torch.zeros((), device=device)
        for optimizer in self.optimizers:
            optimizer.found_inf = self.found_inf

    def __call__(self, step: int) -> torch.Tensor:
        set_learning_rates(self.optimizers, learning_rate_scale(step, self.config))
        self.number.fill_(step)
        loss = self.take(step)
        if (step + 1) % self.config.log_interval == 0:
            self.check()
        return loss

    def take(self, step) -> torch.Tensor:
        loss, bad = self.backward(step)
        self.guard(loss, bad)
        self.update()
        self.clear()
        return loss

    def clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def guard(self, loss: torch.Tensor, bad: torch.Tensor) -> None:
        """Have the update left out, and counted, where loss or gradients are not finite.

        With `--nan stop` so is every update after it, and the weights wait for `check` as they are.
        """
        stopped = (self.unsaid[0] > 0) & (self.config.nan == "stop")
        now = distributed.total(bad + ~loss.isfinite()) > 0  # on any rank
        self.found_inf.copy_(now | stopped)
        said = torch.stack([self.unsaid[0] + 1, self.number, loss, bad])
        self.unsaid.copy_(torch.where(now & ~stopped, said, self.unsaid))

    def check(self) -> None:
        count, step, loss, bad = self.unsaid.tolist()  # waits for the device
        if count:
            self.unsaid.zero_()
            self.refuse_or_skip(int(step), loss, bad, int(count))


class GraphStep(DeviceStep):
    """The same step as one CUDA graph: launched whole, however many kernels it has.

    Everything that changes from step to step lies on the device: the step's number, from which the
    batch follows, learning rates, and the state of the generator that dropout draws seeds from.
    Gradients are made by the capture, in the graph's own memory, so that each replay writes them
    anew: none is filled with zeros, and none is added to.

    The blocks' linear layers compute with copies of their weights in 16 bits, which the optimizer
    rewrites in its own pass: nothing is cast, and nothing is rounded otherwise than by autocast.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.graph, self.taken, self.is_eager = None, 0, False
        self.keeps_gradients = False  # those of the capture lie where its replays write them
        self.copies = self.copies_in_16_bits()
        if self.copies:
            weights = dict(self.model.named_parameters())
            self.fused.follow({weights[name]: copy for name, copy in self.copies.items()})

    def copies_in_16_bits(self) -> dict[str, torch.Tensor]:
        """By name, where the optimizer can follow copies and one pass makes the gradients."""
        config, dtype = self.config, self.precision.dtype
        several = self.passes > 1  # gradients in 16 bits are not to be added up
        if config.activation_checkpointing or config.compiles_model or several:
            return {}
        if dtype == torch.float32 or not hasattr(self.fused, "follow"):
            return {}
        return {
            f"{name}.{key}": weight.detach().to(dtype).requires_grad_()
            for name, module in self.model.named_modules()
            if name.startswith("blocks.") and isinstance(module, nn.Linear)
            for key, weight in module.named_parameters(recurse=False)
            if key == "weight" or getattr(module, "adds_bias", True)
        }

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.model, self.copies, (x, y))[1]

    def take(self, step) -> torch.Tensor:
        if self.taken < WARM_UP:
            self.taken += 1
            return on_side_stream(self.eager)
        if self.graph is None and not self.is_eager:
            self.capture()
        if self.is_eager:
            return self.eager()
        self.send()
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it

    def eager(self) -> torch.Tensor:
        return super().take(self.number)

    def capture(self) -> None:
        """Make the graph, or with `--step auto` go on without one where that is not possible."""
        self.send()
        self.keeps_gradients = True
        try:
            self.graph, self.loss = capture(self.eager)
        except CaptureError as error:
            if self.config.step == "graph":
                raise UserError(
                    f"--step graph: the step cannot be captured ({error}); use --step eager"
                ) from None
            print(f"the step cannot be captured as a CUDA graph ({error}); steps are eager")
            self.is_eager, self.keeps_gradients = True, False
            self.clear()

    def send(self) -> None:
        """Bring learning rates and addresses of a fused AdamW to the device."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "send"):
                optimizer.send()

    def clear(self) -> None:
        if not self.keeps_gradients:
            super().clear()
            for copy in self.copies.values():
                copy.grad = None


def choose_step(config: TrainConfig, precision: Precision, data: Data) -> tuple[type[Step], str]:
    """The kind of step that `--step` means here, and the reason in a few words."""
    mode, reason = config.step, None
    # fused optimizers on a GPU can leave the decision about a bad step to the device
    waits = precision.device.type != "cuda" or precision.scaler.is_enabled()
    eager = Step if waits else DeviceStep
    if mode == "compile":
        return eager, "eager, the model by torch.compile"
    if precision.device.type != "cuda":
        reason = f"the device is {precision.device.type}"
    elif precision.scaler.is_enabled():
        reason = "the fp16 scaler waits for the device"
    elif data.source != precision.device:
        reason = "the data is too large for the card"
    elif distributed.world() > 1:
        reason = "ranks exchange gradients"
    elif config.activation_checkpointing and config.model.dropout:
        reason = "dropout in blocks that are computed again sets generators back"
    if mode == "graph" and reason:
        raise UserError(f"--step graph cannot be had: {reason}; use --step eager")
    if mode == "graph" or (mode == "auto" and reason is None):
        return GraphStep, "one CUDA graph"
    return eager, f"eager, {reason}" if mode == "auto" else "eager"


def passes_per_step(config: TrainConfig) -> int:
    """How many forward and backward passes are accumulated into one step."""
    tokens, passes = config.tokens_per_step, config.gradient_accumulation_steps
    if tokens and passes:
        raise UserError("give --tokens-per-step or --gradient-accumulation-steps, not both")
    if not tokens:
        return passes or 1
    tokens_per_pass = distributed.world() * config.batch_size * config.model.block_size
    if tokens % tokens_per_pass:
        raise UserError(
            f"--tokens-per-step {tokens} is no multiple of the {tokens_per_pass} tokens of one "
            "pass (--batch-size times --block-size, on every rank)"
        )
    return tokens // tokens_per_pass


def tokens_per_step(config: TrainConfig) -> int:
    """Of all passes on all ranks."""
    tokens_per_pass = distributed.world() * config.batch_size * config.model.block_size
    return passes_per_step(config) * tokens_per_pass
