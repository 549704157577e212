"""One-line mistakes in `kernels/optimizer/adamw.py`, and what each would break."""

MUTATIONS = [
    ("        self._factor = None\n        return loss", "        return loss", "clipping affects later steps"),
    ("self._tables = None  # rebuilt by the next `send`", "pass", "a group that is added is not updated"),
    ("if self.addresses.send(rows):", "if self.addresses.tensor is None and self.addresses.send(rows):", "moved tensors are written where they were"),
    ("row[:-1])", "row[:0])", "tensors that are not aligned are taken as if they were"),
    ("torch.float32 if key == \"step\" else accumulator(parameter.dtype)", "parameter.dtype", "state of 16 bits comes back rounded"),
    ("if not gradient.is_contiguous():", "if False:", "a gradient of other strides is taken as if dense"),
]
