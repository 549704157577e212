"""One-line mistakes in `gpt/training/cuda_graph.py`, and what each would break."""

FILE = "gpt/training/cuda_graph.py"
TESTS = ["tests/gpt/training/test_cuda_graph.py"]
MUTATIONS = [
    ("        torch.cuda.set_stream(stream)", "        # torch.cuda.set_stream(stream)", "eager work goes on in the stream of a capture that failed"),
    ("generator.graphsafe_set_state(generator.clone_state())", "pass", "nothing can be drawn after a capture that failed"),
    ("    torch.cuda.set_rng_state(state)\n", "", "a capture that failed has drawn numbers"),
    ("cause = error.__context__ or error", "cause = error", "the message names what followed, not what failed"),
]
