"""The options of a training run and their defaults."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .. import UserError
from .base import Config, option
from .model import ModelConfig


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training run. The names are nanoGPT's where nanoGPT has one."""

    removed: ClassVar = {
        "tokens_per_step": 0,
        "profile": False,
        "activation_checkpointing": False,
        "parallel": "ddp",
    }

    preset: str = option(
        "lecture",
        "the defaults of all other options: quickstart, laptop, lecture-fast, lecture, "
        "lecture-small, shakespeare-char, speedrun, addition, or gpt2[-medium|-large|-xl]",
    )
    model: ModelConfig = field(default_factory=ModelConfig)

    data: str = option(
        "auto",
        "shakespeare, python-docs, a text file, a folder with train.bin and val.bin, or "
        "addition-1 to addition-8; auto: shakespeare, or python-docs without a network",
        section="data",
    )
    data_dir: str = option("data", "folder that is searched for downloaded and prepared data")
    offline: bool = option(False, "download nothing: use what is here or cached, or stop")
    tokenizer: Literal["char", "byte", "gpt2"] = option(
        "char", "how a text becomes tokens; token files bring their own"
    )

    kernels: str = option(
        "auto",
        "auto, reference (the lecture's modules), or an argument of kernels.load, such as torch",
        section="computation",
    )
    lecture: str = option(
        "",
        "train a stage of the lecture: bigram, average-loops, average-matrix, average-softmax, "
        "self-attention, one-head, many-heads, feed-forward, residual, layer-norm or dropout",
    )
    device: str = option("auto", "where the model trains: auto, cuda, cuda:1, cpu or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "dtype of matrix products; auto: the fastest that trains safely"
    )
    compile: bool = option(False, "torch.compile the model, whatever --step is")
    step: Literal["auto", "eager", "compile", "graph"] = option(
        "auto", "graph: the step as one CUDA graph; compile: eager steps of the compiled model"
    )
    seed: int = option(1337, "seed of weights, batches and dropout", below=2**63)  # PyTorch's limit

    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "muon: Muon for the blocks' matrices, AdamW for the rest", section="optimizer"
    )
    learning_rate: float = option(3e-4, "AdamW's learning rate")
    muon_learning_rate: float = option(0.02, "Muon's learning rate")
    weight_decay: float = option(0.01, "decoupled weight decay")
    decay_all: bool = option(True, "decay all weights; otherwise matrices only, as in GPT-2")
    beta1: float = option(0.9, "AdamW's decay rate of the first moment", below=1)
    beta2: float = option(0.999, "AdamW's decay rate of the second moment", below=1)
    grad_clip: float = option(0.0, "largest norm of all gradients together; 0: off")
    decay_lr: bool = option(
        False, "warm up, then decay to min_lr along a cosine; otherwise constant"
    )
    warmup_iters: int = option(0, "steps of linear warm-up, with --decay-lr")
    lr_decay_iters: int = option(0, "step at which the decay ends; 0: max_iters")
    min_lr: float = option(0.0, "learning rate from the end of the decay on")

    batch_size: int = option(
        64, "sequences in a forward pass", at_least=1, below=2**20, section="loop"
    )
    gradient_accumulation_steps: int = option(
        0, "forward passes of a step, over all ranks; 0: one on every rank"
    )
    max_iters: int = option(5000, "number of training steps")
    eval_interval: int = option(500, "steps between evaluations", at_least=1)
    eval_iters: int = option(
        0,
        "batches of each split in an evaluation; 0: the whole validation split, and as "
        "much of the training split",
    )
    eval_only: bool = option(False, "evaluate once and exit")
    log_interval: int = option(10, "steps between lines of metrics", at_least=1)

    out_dir: str = option("out", "folder of the run; an earlier one is renamed", section="run")
    init_from: str = option(
        "scratch",
        "scratch, resume, the folder of a run or of transformers, or a file (nanoGPT's ckpt.pt, a "
        "state dict of the lecture's model)",
    )
    resume: bool = option(False, "continue from the last checkpoint in out_dir")
    keep: int = option(0, "number of older checkpoints to keep, besides the last and the best")
    save_minutes: float = option(
        10.0, "minutes of training without an evaluation after which the run is saved; 0: off"
    )
    nan: Literal["stop", "skip"] = option("stop", "what to do if loss or gradients are not finite")
    log: Literal["none", "wandb"] = option("none", "an additional logger: Weights & Biases")
    sample: int = option(0, "number of tokens to generate after training", below=2**24)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_lr and self.learning_rate == 0:
            raise UserError("--learning-rate is 0; it must be above 0 with --decay-lr")

    @property
    def compiles_model(self) -> bool:
        return self.compile or self.step == "compile"
