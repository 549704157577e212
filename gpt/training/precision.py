"""Mixed precision: matrix products in 16 bits, weights and optimizer state in fp32."""

import contextlib

import torch


class Precision:
    """The device and the dtype of its matrix products, with the loss scaler that fp16 needs."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        # fp16 underflows small gradients: the loss is scaled up, and the gradients down again
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context in which matrix products run in `dtype`; fp32 runs without autocast."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)
