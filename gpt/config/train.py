"""A training run: its options and their defaults."""

from dataclasses import dataclass, field
from typing import Literal

from gpt.config.model import ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The names are nanoGPT's where nanoGPT has one."""

    preset: str = "lecture"  # the set of defaults that the other options change
    model: ModelConfig = field(default_factory=ModelConfig)

    # data
    data: str = "auto"  # shakespeare, python-docs, a text file, or a folder with train.bin, val.bin
    data_dir: str = "data"  # where downloaded or prepared data is looked for first
    tokenizer: Literal["char", "byte", "gpt2"] = "char"  # of text; token files bring their own

    # what computes it
    kernels: str = "auto"  # a table of kernels.load, or reference: the lecture's own modules
    lecture: str = (
        ""  # train a step of the lecture's road (gpt/models/lecture.py) instead: bigram, ...
    )
    device: str = "auto"  # cuda, cuda:1, cpu, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False  # torch.compile the model, whatever the step is
    # graph: all of a step as one CUDA graph; compile: eager, with the model compiled
    step: Literal["auto", "eager", "compile", "graph"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of ranks; fsdp: each has a share of the model
    activation_checkpointing: bool = False  # keep a block's input alone, and compute it again
    seed: int = 1337

    # the optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, AdamW the rest
    learning_rate: float = 3e-4
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.01
    decay_all: bool = True  # False: weight decay for matrices alone, as GPT-2 and nanoGPT do
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 0.0  # largest norm of all gradients together; 0 is off
    decay_lr: bool = False  # warm up, then a cosine down to min_lr
    warmup_iters: int = 0
    lr_decay_iters: int = 0  # where the cosine ends; 0 is max_iters
    min_lr: float = 0.0  # where it ends, as a learning rate

    # the loop
    batch_size: int = 64  # sequences in one forward pass
    tokens_per_step: int = 0  # in all, over accumulated passes; 0 is batch_size * block_size
    gradient_accumulation_steps: int = 0  # the same, given as a number of passes
    max_iters: int = 5000
    eval_interval: int = 500
    eval_iters: int = 0  # 0: the whole validation split; else so many random batches, as nanoGPT
    eval_only: bool = False
    log_interval: int = 10

    # the run
    out_dir: str = "out"  # an earlier run in it is kept under another name
    init_from: str = "scratch"  # resume, or weights: a run, gpt2[-medium|-large|-xl], a file
    resume: bool = False  # go on from the last checkpoint in out_dir
    keep: int = 0  # so many older checkpoints stay beside the last and the best
    nan: Literal["stop", "skip"] = "stop"  # a step whose loss or gradients are not finite
    log: Literal["none", "tensorboard", "wandb"] = "none"  # besides metrics.jsonl and loss.png
    profile: bool = False  # trace.json of a few steps, and the kernels that cost most
    sample: int = 0  # characters to print when the run is over

    @property
    def compiles_model(self) -> bool:
        return self.compile or self.step == "compile"
