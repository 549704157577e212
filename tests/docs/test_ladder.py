"""Every rung in docs/ladder is correct."""

import pytest
import torch

from bench.baselines import REFERENCES
from bench.recipes import ladder
from bench.workloads.operations import PRECISIONS, Sizes
from kernels import torch_ops
from tests.numerics import hold_against
from tests.operands import DEVICE

PATHS = ladder.paths()
# these round intermediate results to the dtype of the inputs, as their PyTorch baseline does
SAME_DTYPE = ("attention", "feed_forward")
# on a GPU, products in fp32 would need more shared memory than some GPUs have
TESTED = ("fp32" if DEVICE == "cpu" else "fp16", "bf16")
ODD = {  # but whole vectors for the descriptors of the feed-forward
    "layer_norm": Sizes("odd", B=1, T=5, C=33, H=1, V=1),
    "attention": Sizes("odd", B=1, T=67, C=16, H=1, V=1),
    "feed_forward": Sizes("odd", B=1, T=3, C=24, H=1, V=1),
    "cross_entropy": Sizes("odd", B=2, T=3, C=1, H=1, V=67),
}


def name(path):
    return f"{path.parent.name}/{path.stem}"


def inputs(operation, precision):
    torch.manual_seed(0)
    case = ladder.TIMED[operation]._replace(sizes=ODD[operation], precision=precision)
    return case.inputs(DEVICE)


@pytest.mark.parametrize("precision", TESTED)
@pytest.mark.parametrize("path", PATHS, ids=name)
def test_values_and_gradients_match_fp64(path, precision):
    rung = ladder.load(path)
    hold_against(
        rung.function,
        REFERENCES.get(rung.operation, getattr(torch_ops, rung.operation)),
        inputs(rung.operation, precision),
        backward="autograd.Function" in path.read_text(),
        out_dtype=torch.float32 if rung.operation == "cross_entropy" else None,
        compute=PRECISIONS[precision].narrow if rung.operation in SAME_DTYPE else None,
        # rounds the gradient, dloss and their product
        gradient_factor=3.0 if rung.name == "4_one_visit" else None,
    )
