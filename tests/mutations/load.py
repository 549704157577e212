"""One-line mutations of `gpt/generation/load.py`, and what each would break."""

FILE = "gpt/generation/load.py"
TESTS = ["tests/gpt/runs/test_run_state.py"]
MUTATIONS = [
    ("    if config.vocab_size < tokenizer.vocab_size:", "    if False:", "a model that does not know all tokens is loaded"),
]
