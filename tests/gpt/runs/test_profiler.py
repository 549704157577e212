"""--profile writes a trace of a few steps and prints their costliest kernels."""

import json
import re

import pytest
import torch

from gpt.runs.profiler import COSTLIEST, NEEDED, STEPS, WAIT, WARM_UP, profiler
from tests.runs import metrics, run, tensor_files

LINE = re.compile(r"^ *aten::\S+ +([\d.]+)%", re.M)  # an operation and its share


def test_profile_writes_a_trace_and_does_not_change_the_run(tmp_path, capsys):
    options = ["--kernels=torch", "--max-iters=12", "--eval-interval=12"]
    assert run(tmp_path / "out", "--profile", *options) == 0
    shares = [float(share) for share in LINE.findall(capsys.readouterr().out)]
    assert 0 < len(shares) <= COSTLIEST
    assert shares == sorted(shares, reverse=True)
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{WAIT + WARM_UP + number}" for number in range(STEPS)}
    assert run(tmp_path / "other", *options) == 0
    assert metrics(tmp_path / "out") == metrics(tmp_path / "other")
    assert tensor_files(tmp_path / "out") == tensor_files(tmp_path / "other")


@pytest.mark.parametrize(
    ("enabled", "steps"), [(True, 0), (True, WAIT), (True, NEEDED - 1), (False, NEEDED)]
)
def test_no_trace_without_profile_or_after_too_few_steps(tmp_path, capsys, enabled, steps):
    with profiler(enabled, tmp_path, torch.device("cpu")) as end_step:
        for _ in range(steps):
            end_step()
    assert list(tmp_path.iterdir()) == []
    message = "--profile needs 10 steps, but the run had fewer\n" if enabled else ""
    assert capsys.readouterr().out == message
