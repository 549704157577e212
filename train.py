"""Train a GPT: options -> wiring -> the loop. `python train.py --help` lists the options.

`--kernels triton|torch|reference` chooses what computes the same model: the Triton kernels,
PyTorch's own operations, or the lecture's modules.
"""

import contextlib
import math
import platform
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import kernels
from gpt import UserError, hardware
from gpt.config.cli import parse_run
from gpt.config.train import TrainConfig
from gpt.data.corpus import open_data
from gpt.data.prefetch import Prefetched
from gpt.generation.generate import draw, generate, stream_text
from gpt.models.activation_checkpointing import recompute_blocks
from gpt.models.build import build
from gpt.pretrained import init_from
from gpt.runs.metrics import NoRecord, Record, open_folder
from gpt.runs.profiler import Profiler
from gpt.runs.progress import Progress
from gpt.runs.run_state import Saver, restore_run
from gpt.runs.signals import StopSignals
from gpt.training import distributed, out_of_memory, self_check
from gpt.training.evaluation import GraphedLoss, evaluate
from gpt.training.optimizers import make_optimizers
from gpt.training.step import GraphStep, Precision, choose_step, passes_per_step, tokens_per_step

EXCERPT = 100  # tokens of each evaluation's sample


def main(arguments: list[str]) -> int:
    try:
        preset = "lecture" if torch.cuda.is_available() else "quickstart"
        config = parse_run(arguments, preset, init_from.defaults_of)
        device = hardware.choose_device(distributed.join(config.device))
        with distributed.main_speaks():
            train(config, device)
    except (UserError, kernels.Unavailable) as refusal:
        print(f"train.py: {refusal}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not hardware.out_of_memory(error):
            raise
        print(
            "train.py: there is not memory enough; halve --batch-size and double "
            "--gradient-accumulation-steps, which trains the same model",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        distributed.leave()
    return 0


def train(config: TrainConfig, device: torch.device) -> None:
    # the machine
    dtype = hardware.choose_dtype(config.dtype, device)
    precision = Precision(device, dtype)
    ops = load_ops(config, device)

    # the data, on the device
    data = open_data(config.data, config.data_dir, config.tokenizer).to(device)
    data.check_model(config.model)
    model_config = replace(config.model, vocab_size=vocabulary(config, data))
    config = replace(config, data=data.name, model=model_config)
    if ops is not None and device.type == "cuda" and "triton" in kernels.serving(ops).values():
        from kernels import check

        ops = self_check.trusted(ops, kernels.load("torch"), check, data, config, precision)

    # the model: the same weights from the same seed, whatever computes them
    adamw = (ops or kernels.load("torch")).adamw
    model = build(config.model, ops, config.lecture)
    torch.manual_seed(config.seed)
    model.initialise()
    if config.init_from not in ("scratch", "resume"):
        print(init_from.begin(model, config.init_from, data.tokenizer))
    if config.parallel == "fsdp":
        distributed.shard(model, device, dtype)
        adamw = partial(torch.optim.AdamW, fused=True)  # which knows shards
    model.to(device)
    if config.activation_checkpointing:
        recompute_blocks(model, config.model)
    if distributed.rank():
        torch.manual_seed(config.seed + distributed.rank())  # for dropout; one rank's seed goes on
    optimizers = make_optimizers(model, config, adamw, dtype)
    parameters = sum(p.numel() for p in model.parameters())
    step_kind, step_reason = choose_step(config, precision, data)
    if config.parallel == "fsdp" and precision.scaler.is_enabled():
        raise UserError(
            "--parallel fsdp cannot be had with --dtype float16; use bfloat16 or float32"
        )
    describe(config, device, dtype, ops, parameters, step_reason)

    # the run, from its beginning or from its last checkpoint
    folder = Path(config.out_dir)
    lock = None  # held to the end
    if distributed.is_main() and not config.eval_only:
        lock, earlier = open_folder(folder, config.resume)
        if earlier:
            print(f"{folder} held an earlier run, which is kept as {earlier}")
    reached = {"step": 0, "seconds": 0.0, "best_val_loss": math.inf, "losses": [], "skipped": 0}
    if config.resume:
        reached = restore_run(folder, model, optimizers, precision, data)
        print(f"going on from step {reached['step']} of the run in {folder}")
    compiled = distributed.parallel(
        torch.compile(model, dynamic=False) if config.compiles_model else model
    )
    if config.eval_only:
        val_loss = evaluate(compiled, data, config, precision)
        print(f"step {reached['step']}: val loss {val_loss:.4f}")
        return

    # the loop
    first, best, val_loss = reached["step"], reached["best_val_loss"], reached.get("val_loss")
    scores = reached.get("scores", {})
    if first > config.max_iters:
        raise UserError(
            f"the run has taken {first} steps, more than --max-iters {config.max_iters}"
        )
    resume_at = first if config.resume else None
    record = Record(folder, config, resume_at) if distributed.is_main() else NoRecord()
    progress = Progress(
        record,
        config,
        device,
        reached,
        tokens_per_step=tokens_per_step(config),
        flops_per_step=hardware.flops_per_token(config.model, parameters) * tokens_per_step(config),
    )
    saver = Saver(folder, config, data, model, optimizers, precision)
    profiler = Profiler(config.profile and distributed.is_main(), folder, device)
    on_device = data.source == device
    with (
        StopSignals() as signals,  # heard until the last checkpoint is written
        contextlib.nullcontext(data) if on_device else Prefetched(data) as batches,
        record,
        saver,
        profiler,
    ):
        take_step = step_kind(compiled, optimizers, batches, config, precision)
        take_step.skipped = reached["skipped"]
        loss_of = GraphedLoss(compiled, precision) if step_kind is GraphStep else None
        for step in range(first, config.max_iters + 1):
            stopping = distributed.any_rank(bool(signals.asked))
            due = step % config.eval_interval == 0 or step == config.max_iters
            if step == first and "val_loss" in reached:
                due = False  # it was evaluated before the run was stopped
            if due or (stopping and step > first):
                take_step.check()
                with progress.paused():
                    reached, improved = {"step": step, "skipped": take_step.skipped}, False
                    if due:
                        val_loss = evaluate(compiled, data, config, precision, loss_of)
                        scores = data.scores(compiled, config.model.block_size, precision)
                        said = excerpt(model, data, config, precision)
                        progress.evaluation(step, val_loss, said, **scores)
                        reached |= {"val_loss": val_loss, "scores": scores}
                        improved, best = val_loss < best, min(best, val_loss)
                    saver.save({**reached, "best_val_loss": best, **progress.state()}, improved)
            if stopping or step == config.max_iters:
                break
            progress.step(step, out_of_memory.take(take_step, step, data))
            profiler.step()

    # what came of it
    progress.bar.close()
    if step < config.max_iters:
        print(
            f"stopped by {signals.asked} after step {step}, which is saved; go on with: "
            f"python train.py --resume --out-dir {folder}"
        )
        return
    summary = {
        "best_val_loss": best,
        "final_val_loss": val_loss,
        **scores,
        "steps": config.max_iters,
        "skipped_steps": take_step.skipped,
        "training_seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second(config.max_iters),
        "peak_memory_bytes": hardware.peak_memory(device),
        "parameters": parameters,
        "data": data.name,
        "device": hardware.device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": serving(config, ops),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    record.finish(summary)
    print(
        f"best val loss {best:.4f}, {summary['training_seconds']:.1f} s of training, "
        f"{summary['tokens_per_second']:,.0f} tok/s; the run is in {folder}"
    )
    if distributed.is_main() and config.parallel == "ddp":  # one rank alone has no whole model
        speak(model, data, config, precision)
    del lock


def load_ops(config: TrainConfig, device: torch.device):
    """The table of operations, or None where the lecture's own modules compute everything."""
    if config.lecture or config.kernels == "reference":
        return None
    try:
        adamw = ",adamw=torch" if config.parallel == "fsdp" else ""
        return kernels.load(config.kernels + adamw, device)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def serving(config: TrainConfig, ops) -> dict[str, str]:
    """Which implementation serves each operation."""
    if ops is None:
        return {"model": f"lecture step {config.lecture}" if config.lecture else "reference"}
    return kernels.serving(ops)


def vocabulary(config: TrainConfig, data) -> int:
    """How many tokens the model knows: those of the tokenizer, or more, as padding."""
    asked, needed = config.model.vocab_size, data.tokenizer.vocab_size
    if 0 < asked < needed:
        raise UserError(f"--vocab-size {asked} is less than the {needed} tokens of {data.name}")
    return asked or needed


def describe(config: TrainConfig, device, dtype, ops, parameters: int, step: str) -> None:
    """The first lines: what is trained, on what, by which kernels."""
    passes = passes_per_step(config)
    print(f"preset {config.preset}: {parameters / 1e6:.6f} M parameters, data {config.data}")
    print(
        f"{tokens_per_step(config):,} tokens a step: {passes} x {distributed.world()} x "
        f"{config.batch_size} sequences of {config.model.block_size}; a step is {step}"
    )
    by: dict[str, list[str]] = {}
    for operation, implementation in serving(config, ops).items():
        by.setdefault(implementation, []).append(operation)
    table = "; ".join(f"{name}: {', '.join(operations)}" for name, operations in by.items())
    reason = ""
    if config.kernels == "auto" and ops is not None:
        reason = " (auto: {1})".format(*kernels.explain_auto(device))
    number = str(dtype).removeprefix("torch.")
    tf32 = torch.get_float32_matmul_precision() != "highest"
    number += ", fp32 products in TF32" if tf32 else " without TF32"
    print(f"{hardware.device_name(device)}, {number}, kernels by {table}{reason}", flush=True)


@torch.no_grad()
def excerpt(model, data, config: TrainConfig, precision: Precision) -> str:
    """What the model says so far, where --sample asks for text; by the lecture's loop.

    Not by `generate`, which on a card would capture a graph beside the step's own. It draws the
    same way each time, so that what changes is the model, and leaves training's generators alone.
    """
    speaks = config.sample and not config.model.source_size  # it has to begin with a source
    if not (speaks and distributed.is_main() and config.parallel == "ddp"):
        return ""
    tokens = torch.zeros((1, 1), dtype=torch.long, device=precision.device)
    generator = torch.Generator(precision.device).manual_seed(config.seed)
    model.eval()
    with precision.autocast():
        for _ in range(min(config.sample, EXCERPT)):
            logits, _ = model(tokens[:, -config.model.block_size :])  # (1, T, V)
            logits = logits[:, -1, : data.tokenizer.vocab_size].float()  # (1, V)
            token = draw(logits, temperature=1.0, top_k=0, top_p=1.0, generator=generator)  # (1,)
            tokens = torch.cat((tokens, token[:, None]), dim=1)
    model.train()
    return data.tokenizer.decode(tokens[0, 1:].tolist())


def speak(model, data, config: TrainConfig, precision: Precision) -> None:
    """Print a sample from the trained model, as it is made."""
    if not config.sample or config.model.source_size:
        return
    prompt = torch.zeros((1, 1), dtype=torch.long, device=precision.device)  # as in the lecture
    generator = torch.Generator(precision.device).manual_seed(config.seed)
    tokens = generate(model, prompt, config.sample, generator=generator)
    for text in stream_text(tokens, data.tokenizer.stream()):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
