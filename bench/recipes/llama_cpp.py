"""GPT-2 in llama.cpp, through llama-cpp-python, as a peer for decoding on a CPU.

pip install llama-cpp-python gguf      (it is compiled, and needs a C++ compiler and CMake)
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from gpt.config.model import ModelConfig

TYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}  # our names -> those of GGUF


def generator(config: ModelConfig, dtype: str) -> Callable[[torch.Tensor, int], Iterator[int]]:
    """A GPT-2 with random weights, as a `Generate` of `decode.py`; raises ImportError."""
    import llama_cpp  # in the environment of the comparison only

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        write(path, config, TYPES[dtype])
        threads = torch.get_num_threads()
        options = {"n_ctx": config.block_size, "n_threads": threads, "n_threads_batch": threads}
        model = llama_cpp.Llama(str(path), use_mmap=False, verbose=False, **options)

    def run(tokens: torch.Tensor, new: int) -> Iterator[int]:
        if len(tokens) > 1:
            raise ValueError("llama-cpp-python generates one row")
        model.reset()
        sampled = model.generate(tokens[0].tolist(), top_k=0, top_p=1.0, min_p=0.0, temp=1.0)
        return (1 for _ in zip(range(new), sampled, strict=False))

    return run


def write(path: Path, config: ModelConfig, kind: str) -> None:
    """Write a GPT-2 with random weights as a GGUF file, its matrices of the type `kind`."""
    import gguf

    C, generator = config.n_embd, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(4 * C)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)

    def add(name: str, *shape: int, kind: str = "F32") -> None:
        weights = generator.standard_normal(shape, dtype=np.float32) * 0.02
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(weights, dtype), raw_dtype=dtype)

    add("token_embd.weight", config.vocab_size, C, kind=kind)  # and of the head
    add("position_embd.weight", config.block_size, C)
    shapes = {"attn_norm": (C,), "attn_qkv": (3 * C, C), "attn_output": (C, C)}
    shapes |= {"ffn_norm": (C,), "ffn_up": (4 * C, C), "ffn_down": (C, 4 * C)}
    layers = {f"blk.{i}.{name}": shapes[name] for i in range(config.n_layer) for name in shapes}
    for name, shape in (layers | {"output_norm": (C,)}).items():
        add(f"{name}.weight", *shape, kind=kind if len(shape) == 2 else "F32")
        add(f"{name}.bias", shape[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
