"""--profile: a trace of a few steps, and the costliest of their kernels."""

import json
import re

import pytest
import torch

from gpt.runs.profiler import COSTLIEST, NEEDED, STEPS, WAIT, WARM_UP, Profiler
from tests.runs import metrics, run, tensor_files

LINE = re.compile(r"^ *([\d.]+)% +([\d.]+) ms +(\d+) x (\S.*)$", re.M)


def test_a_run_s_trace_and_its_costliest_kernels(tmp_path, capsys):
    options = ["--kernels=torch", "--max-iters=12", "--eval-interval=12"]
    assert run(tmp_path / "out", "--profile", *options) == 0
    lines = LINE.findall(capsys.readouterr().out)
    assert len(lines) == COSTLIEST
    shares = [float(share) for share, *_ in lines]
    assert shares == sorted(shares, reverse=True)
    assert 20 < sum(shares) <= 100.5  # a model so small has no kernel that stands out
    assert any(name.startswith("aten::") for *_, name in lines)
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{WAIT + WARM_UP + number}" for number in range(STEPS)}
    # and the run is the run that it would have been
    assert run(tmp_path / "other", *options) == 0
    assert metrics(tmp_path / "out") == metrics(tmp_path / "other")
    assert tensor_files(tmp_path / "out") == tensor_files(tmp_path / "other")


@pytest.mark.parametrize("steps", [0, WAIT, NEEDED - 1])
def test_too_few_steps_leave_no_trace(tmp_path, capsys, steps):
    with Profiler(True, tmp_path, torch.device("cpu")) as profiler:
        for _ in range(steps):
            profiler.step()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == "--profile takes 10 steps, and there were fewer\n"


def test_unasked_there_is_no_profile(tmp_path, capsys):
    with Profiler(False, tmp_path, torch.device("cpu")) as profiler:
        for _ in range(NEEDED):
            profiler.step()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_kernel_s_own_time_is_counted_once(tmp_path, capsys):
    x = torch.ones(400, 400)
    with Profiler(True, tmp_path, torch.device("cpu")) as profiler:
        for _ in range(NEEDED):
            for _ in range(5):
                x @ x  # aten::matmul calls aten::mm, which takes the time
            profiler.step()
    lines = {
        name: (float(share), int(count))
        for share, _, count, name in LINE.findall(capsys.readouterr().out)
    }
    assert lines["aten::mm"][1] == 5
    assert lines["aten::mm"][0] > 2 * lines["aten::matmul"][0]
