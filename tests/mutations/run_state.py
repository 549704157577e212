"""One-line mutations of `gpt/runs/run_state.py`, and what each would break."""

FILE = "gpt/runs/run_state.py"
TESTS = ["tests/gpt/runs/test_run_state.py"]
MUTATIONS = [
    ("        self.wait()  # one write at a time, or copies would pile up\n", "", "the next save does not raise the error of a full disk"),
    ("copies = {kind: _to_host(group) for kind, group in tensors.items()}", "copies = tensors", "what is written is what training has changed it to"),
    ("        self._thread.shutdown()\n        self.wait()", "        self._thread.shutdown()", "the end of a run does not raise the error of a full disk"),
    ("    if not all(weight.isfinite().all() for", "    if not all(True for", "weights that are not finite replace good ones"),
    ("= {\"best\": (\"weights\",)} if improved else {}", "= {\"last\": ALL_KINDS} | ({\"best\": (\"weights\",)} if improved else {})", "last is written before best"),
    ("[: -self.keep]", "[: -self.keep - 1]", "one checkpoint more is kept"),
    ("forget = [path.stem for path in older if path.stem != this]", "forget = [path.stem for path in older]", "the checkpoint that is being saved is removed"),
    ("    check_finite(tensors[\"weights\"], source)\n    load_portable_state", "    load_portable_state", "a run resumes with weights that are not finite"),
    ("good = all(isinstance(record.get(name), kind) for name, kind in kinds.items())", "good = True", "a run resumes without a step number"),
    ("torch.set_rng_state(random[f\"cpu.{rank}\"])", "pass", "dropout continues with other masks"),
    ("load_optimizer_tensors(optimizers, model, tensors[\"optimizer\"])", "pass", "the optimizer starts anew"),
    ("precision.scaler.load_state_dict(record[\"scaler\"])", "pass", "the fp16 loss scale starts anew"),
]
