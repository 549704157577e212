"""One-line mistakes in `gpt/runs/run_state.py`, and what each would break."""

FILE = "gpt/runs/run_state.py"
TESTS = ["tests/gpt/runs/test_run_state.py"]
MUTATIONS = [
    ("        self.wait()  # one at a time, or copies would pile up\n", "", "nobody hears of a full disk"),
    ("copies = {kind: _on_host(group) for kind, group in tensors.items()}", "copies = tensors", "what is written is what training has made of it since"),
    ("        self._thread.shutdown()\n        self.wait()", "        self._thread.shutdown()", "nobody hears of a full disk at the end"),
    ("    if not all(weight.isfinite().all() for", "    if not all(True for", "weights that are not finite take the place of good ones"),
    ("names = {\"best\": (\"weights\",)} if improved else {}", "names = {\"last\": WHOLE} | ({\"best\": (\"weights\",)} if improved else {})", "last comes before best"),
    ("[: -self.config.keep]", "[: -self.config.keep - 1]", "one more is kept"),
    ("forget = [path.stem for path in older if path.stem != this]", "forget = [path.stem for path in older]", "the one that is being saved is forgotten"),
    ("    _check_finite(tensors[\"weights\"], source)\n    load_portable_state(model, tensors[\"weights\"])\n    checkpoint", "    load_portable_state(model, tensors[\"weights\"])\n    checkpoint", "going on with weights that are not finite"),
    ("    _check_progress(record, source)\n    _check", "    _check", "a record that does not say how far the run is"),
    ("torch.set_rng_state(random[f\"cpu.{rank}\"])", "pass", "dropout goes on with other masks"),
    ("checkpoint.load_optimizer_tensors(optimizers, model, tensors[\"optimizer\"])", "pass", "the optimizer begins anew"),
    ("precision.scaler.load_state_dict(record[\"scaler\"])", "pass", "the fp16 scale begins anew"),
    ("    if config.vocab_size < tokenizer.vocab_size:", "    if False:", "a model that does not know all tokens"),
]
