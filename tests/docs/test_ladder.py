"""Every rung in docs/ladder is correct, complete, and runs as documented."""

from unittest import mock

import pytest
import torch

import kernels
from bench.baselines import REFERENCES
from bench.recipes import ladder
from bench.recipes.ladder import Rung
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


@pytest.mark.parametrize("operation", ladder.TIMED)
def test_rungs_are_numbered_documented_and_end_with_the_shipped_operation(operation):
    rungs = [path for path in PATHS if path.parent.name == operation]
    readme = (ladder.FOLDER / "README.md").read_text()
    for number, path in enumerate(rungs, 1):
        text = path.read_text()
        assert path.stem.startswith(f"{number}_")
        assert f"rung {number}: " in text.partition("\n")[0]
        assert "\nLimitation: " in text
        assert "\nNext: " in text
        assert f"({name(path)}.py)" in readme
    shipped = [rung for rung in ladder.rungs() if rung.operation == operation][-1]
    assert shipped.name == f"{len(rungs) + 1}_shipped"
    assert shipped.function is getattr(kernels.load("triton", DEVICE), operation)


def test_a_rung_is_tested_by_its_name(capsys):
    with mock.patch("subprocess.run", return_value=mock.Mock(returncode=1)) as run:
        assert ladder.main(["layer_norm/3_one_read"]) == 1
    (_, _, _, *tests), options = run.call_args.args[0], run.call_args.kwargs
    assert pytest.main([*tests, f"--rootdir={options['cwd']}", "--collect-only"]) == 0
    assert capsys.readouterr().out.count("[layer_norm/3_one_read-") == len(TESTED)


def test_rungs_are_timed_with_pytorch_and_backward_only_if_they_have_one(monkeypatch):
    case = ladder.TIMED["layer_norm"]._replace(sizes=Sizes("tiny", 1, 4, 8, 1, 5), precision="fp32")
    monkeypatch.setitem(ladder.TIMED, "layer_norm", case)

    @torch.no_grad()
    def forward_only(x, weight, bias):
        return torch_ops.layer_norm(x, weight, bias)

    rungs = [("1_a", forward_only), ("2_b", torch_ops.layer_norm)]
    rungs = [Rung("layer_norm", *one) for one in rungs]
    rows = ladder.measure(rungs, torch.device("cpu"))
    timed = [f"{row['pass']} {row['implementation']}" for row in rows]
    assert timed == ["forward 1_a", "forward 2_b", "forward PyTorch", "both 2_b", "both PyTorch"]
