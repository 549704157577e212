"""One-line mutations of `gpt/training/cuda_graph.py`, and what each would break."""

FILE = "gpt/training/cuda_graph.py"
TESTS = ["tests/gpt/training/test_cuda_graph.py"]
MUTATIONS = [
    ("        torch.cuda.set_stream(stream)", "        # torch.cuda.set_stream(stream)", "eager work continues in the stream of a failed capture"),
    ("generator.graphsafe_set_state(generator.clone_state())", "pass", "no number can be drawn after a failed capture"),
    ("    torch.cuda.set_rng_state(state)\n", "", "a failed capture has drawn numbers"),
    ("cause = error.__context__ or error", "cause = error", "the message names the consequence, not the cause"),
    ("        self.before()\n        self.graph.replay()", "        self.graph.replay()", "replays use the learning rates of the capture"),
]
