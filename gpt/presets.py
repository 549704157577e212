"""What a model is, how it is trained, and both under a name."""

from dataclasses import dataclass, field, replace
from typing import Literal

NORM_EPS = 1e-5  # PyTorch's LayerNorm default, GPT-2's too
ROPE_BASE = 10_000.0  # Su et al. 2021
IGNORE_INDEX = -1  # targets that do not count, as in nanoGPT and llm.c


@dataclass(frozen=True)
class ModelConfig:
    """What a model is; nothing here says how it is trained or which kernels compute it."""

    vocab_size: int = 0  # 0: as many as the tokenizer has; more is padding
    block_size: int = 256  # the longest context, in tokens
    n_layer: int = 6
    n_head: int = 6
    n_kv_head: int = 0  # heads of keys and values, each for a group of heads; 0: as many
    n_embd: int = 384
    dropout: float = 0.0  # on attention weights, after the projection, after the feed-forward
    embedding_dropout: float = 0.0  # on the sum of the embeddings: GPT-2 has it, the lecture not
    bias: bool = True  # in LayerNorm, the projection and the feed-forward
    qkv_bias: bool = False  # in key, query and value: GPT-2 has it, the lecture not
    head_bias: bool = True  # in lm_head: the lecture has it, GPT-2 not
    tied_head: bool = False  # lm_head shares the token embedding's weight
    activation: Literal["relu", "gelu", "gelu_tanh", "relu_squared", "swiglu"] = "relu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    position: Literal["learned", "rope"] = "learned"
    qk_norm: bool = False  # RMS-normalise each query and key
    window: int = 0  # a token sees itself and the window - 1 before it; 0: all
    source_size: int = 0  # of the context so many tokens go to an encoder; 0: there is none
    logit_softcap: float = 0.0  # logits bent into (-cap, cap), as in Gemma 2; 0 is off
    projection_init: Literal["normal", "scaled", "zero"] = "normal"  # back into the residual stream

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """Heads of queries, of keys and of values."""
        kv_heads = self.n_kv_head or self.n_head
        return self.n_head, kv_heads, kv_heads

    @property
    def feed_forward_widths(self) -> tuple[int, int]:
        """How many channels go into the non-linearity and come out of it.

        swiglu takes two for one, so it has two thirds of the width, and about as many weights.
        """
        if self.activation == "swiglu":
            out = max(8, self.n_embd * 8 // 3 // 8 * 8)
            return 2 * out, out
        return 4 * self.n_embd, 4 * self.n_embd


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
    lecture: str = ""  # train a step of the lecture's road (gpt/lecture.py) instead: bigram, ...
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


_LECTURE = TrainConfig(model=ModelConfig(dropout=0.2))

_LECTURE_SMALL = TrainConfig(  # the video's numbers on the road there, before it scales up
    preset="lecture-small",
    model=ModelConfig(block_size=8, n_layer=3, n_head=4, n_embd=32),
    learning_rate=1e-3,
    batch_size=32,
)

_SHAKESPEARE_CHAR = TrainConfig(  # nanoGPT, config/train_shakespeare_char.py
    preset="shakespeare-char",
    model=ModelConfig(
        dropout=0.2,
        embedding_dropout=0.2,
        bias=False,
        head_bias=False,
        tied_head=True,
        activation="gelu",
        projection_init="scaled",
    ),
    data="shakespeare",
    learning_rate=1e-3,
    min_lr=1e-4,
    decay_lr=True,
    warmup_iters=100,
    beta2=0.99,
    weight_decay=0.1,
    decay_all=False,
    grad_clip=1.0,
    eval_interval=250,
)

_SPEEDRUN = replace(  # nanoGPT's size and data, to its best loss in as few steps as can be
    _SHAKESPEARE_CHAR,
    preset="speedrun",
    model=ModelConfig(
        dropout=0.2,
        bias=False,
        head_bias=False,
        activation="relu_squared",
        position="rope",
        qk_norm=True,
        projection_init="zero",
    ),
    optimizer="muon",
    learning_rate=3e-3,
    min_lr=0.0,
    warmup_iters=20,
    beta2=0.95,
    grad_clip=0.0,
    weight_decay=0.0,
    max_iters=1200,
    eval_interval=100,
)

_GPT2 = TrainConfig(  # nanoGPT, train.py: 12 sequences x 40 passes, half a million tokens a step
    preset="gpt2",
    model=ModelConfig(
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
        bias=False,
        head_bias=False,
        tied_head=True,
        activation="gelu",
        projection_init="scaled",
    ),
    data="data/openwebtext",
    tokenizer="gpt2",
    learning_rate=6e-4,
    min_lr=6e-5,
    decay_lr=True,
    warmup_iters=2000,
    beta2=0.95,
    weight_decay=0.1,
    decay_all=False,
    grad_clip=1.0,
    batch_size=12,
    gradient_accumulation_steps=40,
    max_iters=600_000,
    eval_interval=2000,
)


def _larger_gpt2(name: str, n_layer: int, n_head: int, n_embd: int) -> TrainConfig:
    model = replace(_GPT2.model, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    return replace(_GPT2, preset=name, model=model)


_QUICKSTART = TrainConfig(  # two CPU cores, under a minute; with what papers since have found
    preset="quickstart",
    model=ModelConfig(
        block_size=64,
        n_layer=3,
        n_head=2,
        n_embd=128,
        bias=False,
        head_bias=False,
        activation="relu_squared",
        position="rope",
        qk_norm=True,
        projection_init="zero",
    ),
    optimizer="muon",
    learning_rate=6e-3,
    muon_learning_rate=0.02,
    weight_decay=0.0,
    decay_all=False,
    beta2=0.95,
    decay_lr=True,
    warmup_iters=5,
    batch_size=24,
    max_iters=650,
    eval_interval=150,
    sample=500,
)

_ADDITION = replace(  # the lecture's exercise 2: 3 digits in a minute on two CPU cores
    _QUICKSTART,
    preset="addition",
    model=replace(
        _QUICKSTART.model,
        block_size=12,
        n_layer=2,
        position="learned",  # a digit's place says what it is worth
        projection_init="normal",  # from zero, two layers stay blind to the last digits
    ),
    data="addition-3",
    batch_size=128,
    max_iters=800,
    eval_interval=200,
    sample=0,
)

_CALCULATOR = replace(  # + - * and / with a scratchpad
    _ADDITION,
    preset="calculator",
    model=replace(_ADDITION.model, block_size=35, n_layer=3, n_head=4),
    data="calculator",
    max_iters=3000,
    eval_interval=500,
)

_DATES = replace(  # an encoder reads the source, the decoder looks it up
    _ADDITION,
    preset="dates",
    model=replace(_ADDITION.model, block_size=43, source_size=32, n_layer=2, n_head=4),
    data="dates",
    batch_size=64,
    max_iters=600,
    eval_interval=200,
)

PRESETS = {
    "quickstart": _QUICKSTART,
    "lecture": _LECTURE,
    "lecture-small": _LECTURE_SMALL,
    "shakespeare-char": _SHAKESPEARE_CHAR,
    "speedrun": _SPEEDRUN,
    "addition": _ADDITION,
    "calculator": _CALCULATOR,
    "dates": _DATES,
    "gpt2": _GPT2,
    "gpt2-medium": _larger_gpt2("gpt2-medium", 24, 16, 1024),
    "gpt2-large": _larger_gpt2("gpt2-large", 36, 20, 1280),
    "gpt2-xl": _larger_gpt2("gpt2-xl", 48, 25, 1600),
}
