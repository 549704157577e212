"""Named sets of options: the lecture's, nanoGPT's, GPT-2's, and those of the exercises."""

from dataclasses import replace

from .model import ModelConfig
from .train import TrainConfig

_LECTURE = TrainConfig(model=ModelConfig(dropout=0.2), dtype="float32")  # the lecture's numbers

_LECTURE_FAST = replace(_LECTURE, preset="lecture-fast", dtype="auto")

_LECTURE_SMALL = TrainConfig(  # the numbers of the video before it scales up
    preset="lecture-small",
    model=ModelConfig(block_size=8, n_layer=3, n_head=4, n_embd=32),
    dtype="float32",
    learning_rate=1e-3,
    batch_size=32,
)

_NANOGPT_MODEL = ModelConfig(  # whose --bias and --dropout cover q, k, v and the embeddings
    embedding_dropout=-1,
    bias=False,
    qkv_bias=True,
    head_bias=False,
    tied_head=True,
    activation="gelu",
    projection_init="scaled",
)

_SHAKESPEARE_CHAR = TrainConfig(  # nanoGPT, config/train_shakespeare_char.py
    preset="shakespeare-char",
    model=replace(_NANOGPT_MODEL, dropout=0.2),
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

_GPT2 = replace(  # nanoGPT, train.py: 12 sequences x 40 passes, half a million tokens per step
    _SHAKESPEARE_CHAR,
    preset="gpt2",
    model=replace(_NANOGPT_MODEL, block_size=1024, n_layer=12, n_head=12, n_embd=768),
    data="data/openwebtext",
    tokenizer="gpt2",
    learning_rate=6e-4,
    min_lr=6e-5,
    warmup_iters=2000,
    beta2=0.95,
    batch_size=12,
    gradient_accumulation_steps=40,
    max_iters=600_000,
    eval_interval=2000,
)


def _larger_gpt2(name: str, n_layer: int, n_head: int, n_embd: int) -> TrainConfig:
    model = replace(_GPT2.model, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    return replace(_GPT2, preset=name, model=model)


_MODERN_MODEL = ModelConfig(  # what papers have found since GPT-2
    bias=False,
    qkv_bias=True,
    head_bias=False,
    activation="relu_squared",
    position="rope",
    qk_norm=True,
    projection_init="zero",
)

_SPEEDRUN = replace(  # nanoGPT's size and data, to its best loss in as few steps as possible
    _SHAKESPEARE_CHAR,
    preset="speedrun",
    model=replace(_MODERN_MODEL, dropout=0.05),
    optimizer="muon",
    batch_size=32,
    learning_rate=3e-3,
    min_lr=0.0,
    warmup_iters=20,
    beta2=0.95,
    grad_clip=0.0,
    weight_decay=0.0,
    max_iters=500,
    eval_interval=100,
)

_QUICKSTART = replace(  # less than a minute on two CPU cores
    _SPEEDRUN,
    preset="quickstart",
    model=replace(_MODERN_MODEL, block_size=64, n_layer=3, n_head=2, n_embd=128),
    data="auto",
    learning_rate=8e-3,
    muon_learning_rate=0.014,
    weight_decay=0.1,
    warmup_iters=5,
    batch_size=48,
    max_iters=420,
    eval_interval=210,
    sample=500,
)

_LAPTOP = replace(  # the lecture's loss in minutes on two CPU cores
    _QUICKSTART,
    preset="laptop",
    model=replace(_MODERN_MODEL, n_layer=4, n_head=4, n_embd=256, embedding_dropout=0.1),
    learning_rate=6e-3,
    muon_learning_rate=0.02,
    weight_decay=0.3,
    warmup_iters=20,
    batch_size=16,
    max_iters=1200,
    eval_interval=200,
)

_ADDITION = replace(  # the lecture's exercise 2: three digits in a minute on two CPU cores
    _QUICKSTART,
    preset="addition",
    model=replace(
        _QUICKSTART.model,
        block_size=12,
        n_layer=2,
        position="learned",  # the position of a digit gives its weight
        projection_init="normal",  # with zero, two layers never learn the last digits
    ),
    data="addition-3",
    batch_size=128,
    learning_rate=6e-3,
    muon_learning_rate=0.02,
    weight_decay=0.0,
    max_iters=800,
    eval_interval=200,
    sample=0,
)

PRESETS = {
    config.preset: config
    for config in (
        *(
            _QUICKSTART,
            _LAPTOP,
            _LECTURE_FAST,
            _LECTURE,
            _LECTURE_SMALL,
            _SHAKESPEARE_CHAR,
            _SPEEDRUN,
        ),
        *(_ADDITION, _GPT2),
        _larger_gpt2("gpt2-medium", 24, 16, 1024),
        _larger_gpt2("gpt2-large", 36, 20, 1280),
        _larger_gpt2("gpt2-xl", 48, 25, 1600),
    )
}

DEFAULT_PRESETS = {"cuda": "lecture-fast", "cpu": "quickstart"}  # without --preset
