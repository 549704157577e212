"""Train a GPT: options -> wiring -> the loop. `python train.py --help` lists the options.

`--kernels triton|torch|reference` selects what computes the same model: the Triton kernels,
PyTorch's own operations, or the lecture's modules.
"""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

import kernels
from gpt import UserError, hardware
from gpt.config.cli import parse_run
from gpt.config.presets import DEFAULT_PRESETS
from gpt.config.train import TrainConfig
from gpt.data.corpus import open_data
from gpt.data.dataset import Dataset
from gpt.generation.preview import print_sample
from gpt.models.build import build
from gpt.pretrained import init_from
from gpt.process import protect_streams
from gpt.runs import self_check
from gpt.runs.checkpoint import last_record
from gpt.runs.header import changed_options, print_header
from gpt.runs.loop import Run, split_losses, train_loop
from gpt.runs.metrics import Tracker
from gpt.runs.progress import in_words
from gpt.runs.run_folder import run_folder
from gpt.runs.run_state import RunState, restore_run
from gpt.training import distributed
from gpt.training.make_step import choose_step
from gpt.training.optimizers import make_optimizers
from gpt.training.precision import Precision
from sample import load_ops

SMALLER = (
    "use half the --batch-size and twice the --gradient-accumulation-steps, by default one per "
    "rank, which trains the same model"
)


def main(arguments: list[str]) -> int:
    try:
        with hardware.enough_memory(SMALLER):
            preset = DEFAULT_PRESETS["cuda" if torch.cuda.is_available() else "cpu"]
            config = parse_run(arguments, preset, init_from.defaults_of, last_record)
            device = hardware.choose_device(distributed.init_process_group(config.device))
            hardware.keep_freed_memory(device)
            with distributed.print_on_main_only():
                train(config, device)
    except (UserError, kernels.Unavailable) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        distributed.destroy_process_group()
    return 0


def train(config: TrainConfig, device: torch.device) -> None:
    """Train as `config` describes, or evaluate with --eval-only."""
    run = set_up(config, device)
    path = Path(config.out_dir)
    owns_folder = distributed.is_main() and not config.eval_only
    tracker = Tracker(config.log if owns_folder else "none", config.to_dict())
    with run_folder(path, config.resume) if owns_folder else contextlib.nullcontext() as folder:
        if folder and folder.earlier:
            print(f"{path} held an earlier run, which is now in {folder.earlier}")
        state = RunState()
        if config.resume:
            parts = run.model, run.optimizers, run.precision, run.data
            state, saved = restore_run(path, *parts)
            print(f"resuming the run in {path} from step {state.step}")
            if changes := changed_options(saved, config.to_dict()):
                print(changes)
        if config.eval_only:
            print(f"step {state.step}: {in_words(split_losses(run))}")
            return
        finished = train_loop(run, state, folder, tracker)
        if finished and distributed.is_main():
            print_sample(run.model, run.data.tokenizer, config.sample, config.seed, device)


def set_up(config: TrainConfig, device: torch.device) -> Run:
    """Data, model and optimizers on `device`. Prints the header of the run."""
    dtype = hardware.choose_dtype(config.dtype, device)
    precision = Precision(device, dtype)
    # allow TF32 for the fp32 products of a run in 16 bits, not of one in fp32
    torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")
    is_reference = config.lecture or config.kernels == "reference"
    ops = None if is_reference else load_ops(config.kernels, device)
    data = open_data(config.data, config.data_dir, config.tokenizer).to(device)
    config = with_vocabulary(config, data)
    if ops is not None and device.type == "cuda" and "triton" in kernels.serving(ops).values():
        from kernels import check  # imports Triton

        ops = self_check.checked(ops, kernels.load("torch"), check, data, config, precision)
    step_class, reason = choose_step(config, precision, data)

    # the model: the same weights from the same seed, whatever computes them
    model = build(config.model, ops, config.lecture)
    torch.manual_seed(config.seed)
    model.initialise()
    if config.init_from not in ("scratch", "resume"):
        options = (model, data.tokenizer, config.data_dir)
        print(init_from.initialise_from(config.init_from, *options))
    model.to(device)
    if distributed.rank():
        torch.manual_seed(config.seed + distributed.rank())  # for dropout
    adamw = (ops or kernels.load("torch")).adamw
    optimizers = make_optimizers(model, config, adamw, dtype)
    trained: torch.nn.Module = model
    if config.compiles_model:
        trained = cast(torch.nn.Module, torch.compile(model, dynamic=False))
    implementation = f"lecture stage {config.lecture}" if config.lecture else "reference"
    run = Run(
        config=config,
        data=data,
        model=model,
        parallel_model=distributed.data_parallel(trained),
        optimizers=optimizers,
        precision=precision,
        step_class=step_class,
        kernels={"model": implementation} if ops is None else kernels.serving(ops),
    )
    is_auto = config.kernels == "auto" and ops is not None
    why = kernels.explain_auto(device)[1] if is_auto else ""
    print_header(run, why, reason)
    return run


def with_vocabulary(config: TrainConfig, data: Dataset) -> TrainConfig:
    """The config with the data's name and, unless --vocab-size pads it, its number of tokens."""
    data.check_model(config.model)
    needed = data.tokenizer.vocab_size
    vocab_size = config.model.vocab_size or needed
    if vocab_size < needed:
        raise UserError(f"--vocab-size is {vocab_size}, but {data.name} has {needed} tokens")
    end_of_text = config.model.end_of_text
    if config.model.document_mask and end_of_text < 0:
        if data.tokenizer.end_of_text is None:
            raise UserError(
                f"--document-mask needs an end-of-text token, and the tokenizer of {data.name} has "
                "none; use --tokenizer gpt2, or name the token with --end-of-text"
            )
        end_of_text = data.tokenizer.end_of_text
    model = replace(config.model, vocab_size=vocab_size, end_of_text=end_of_text)
    return replace(config, data=data.name, model=model)


if __name__ == "__main__":
    protect_streams()  # a run goes on without its terminal
    sys.exit(main(sys.argv[1:]))
