"""Files with the interfaces of the peers: nanoGPT's model.py and the lecture's gpt.py."""

NANOGPT = """
from dataclasses import make_dataclass
import torch
from torch import nn

fields = "block_size vocab_size n_layer n_head n_embd dropout bias"
GPTConfig = make_dataclass("GPTConfig", fields.split())

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)

    def forward(self, idx, targets):
        logits = self.table(idx.view(-1))  # `view` needs contiguous batches
        return logits, nn.functional.cross_entropy(logits, targets.view(-1))

    def generate(self, idx, max_new_tokens):
        assert not self.training
        return torch.cat((idx, torch.zeros(len(idx), max_new_tokens)), dim=1)
"""

LECTURE = """
import torch
import torch.nn as nn
block_size = 4 # what is the maximum context length for predictions?
text = open('input.txt').read()
vocab_size = len(sorted(list(set(text))))
class GPTLanguageModel(nn.Module):
    def generate(self, idx, max_new_tokens):
        assert not self.training and not torch.is_grad_enabled()
        assert (vocab_size, block_size, device) == (65, 4, "cpu")
        return torch.cat((idx, torch.zeros(len(idx), max_new_tokens)), dim=1)
model = GPTLanguageModel().cuda()
raise SystemExit("it trains")
"""
