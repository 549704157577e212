"""Write a model as a GGUF file, in the layout of GPT-2 in llama.cpp, with all weights in fp32.

Matrices are as in a Linear. llama.cpp has GPT-2's tokenizer. Bytes and ASCII characters become a
vocabulary of its RWKV tokenizer: any strings of bytes, none of which ends a text, while the other
kinds would let token 11 do so. Where a vocabulary has no equal, the file has none.
"""

import os
from pathlib import Path
from typing import Any

from .. import UserError
from ..config.model import ModelConfig
from ..data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, equal_of
from ..models.layouts import State


def write(path: Path, config: ModelConfig, weights: State, tokenizer: Tokenizer) -> list[str]:
    """Write `path`; returns a sentence for each thing that llama.cpp does otherwise.

    weights: under the names of `transformers`, but with the matrices of a Linear. Raises UserError
    if llama.cpp lacks the activation.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path} needs a library: pip install gguf") from None
    if config.activation not in ("gelu", "gelu_tanh"):
        raise UserError(f"llama.cpp's GPT-2 has no {config.activation}; export to a folder instead")
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.feed_forward_widths[0])
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    notes = []
    if config.activation == "gelu":
        notes.append("llama.cpp computes the run's exact GELU as its approximation, gelu_tanh")
    if not _add_tokenizer(writer, gguf.TokenType, tokenizer, config.vocab_size):
        writer.add_tokenizer_model("no_vocab")
        notes.append("llama.cpp has no tokenizer equal to the run's: the file is without one")
    names: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in weights.items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return notes


def _add_tokenizer(writer: Any, types: Any, tokenizer: Tokenizer, vocab_size: int) -> bool:
    """Add the tokens, and unused ones up to `vocab_size`; False if llama.cpp has no equal."""
    single, special = b"", {}  # the bytes that are tokens; the types of tokens that are not normal
    match tokenizer:
        case ByteTokenizer():
            single = bytes(range(256))
        case CharTokenizer(characters=characters) if characters.isascii():
            single = characters.encode()
    if single:
        tokens = {token: f"\\x{byte:02x}" for token, byte in enumerate(single)}
        writer.add_tokenizer_model("rwkv")
    else:
        equal = equal_of(tokenizer)
        if not (equal.splits_like_gpt2() and equal.merges()) or equal.end_of_text is None:
            return False
        tokens = {number: token for token, number in equal.numbers().items()}
        special = {equal.end_of_text: types.CONTROL}
        for token in equal.record()["added_tokens"]:
            special[token["id"]] = types.CONTROL if token["special"] else types.USER_DEFINED
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(equal.merges())
        writer.add_bos_token_id(equal.end_of_text)
        writer.add_eos_token_id(equal.end_of_text)
    rows = range(vocab_size)  # the byte 0xff is not in any text
    writer.add_token_list([tokens.get(row, f"\\xff unused {row}") for row in rows])
    kinds = dict.fromkeys(tokens, types.NORMAL) | special
    writer.add_token_types([kinds.get(row, types.UNUSED) for row in rows])
    return True
