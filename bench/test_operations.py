"""Times forward, backward and both of every operation with every implementation."""

import pytest

from bench import baselines
from bench.compare import Failed, row
from bench.conftest import DEVICE, timer_and_ceilings
from bench.prove.stages.parity import CONTEXT_LOST
from gpt.hardware import synchronise

pytestmark = pytest.mark.filterwarnings("default")  # peers' warnings are not errors


def test_speed(case, direction, name, session, benchmark):
    maker = baselines.implementations(case, DEVICE)[name]
    if isinstance(maker, str):
        pytest.skip(f"{name}: {maker}")
    measured = session.samples(case, direction)[name]
    if isinstance(measured, Failed):
        try:
            synchronise(DEVICE)
        except RuntimeError:
            reason = f"{name} broke the CUDA context: {measured.reason}"
            pytest.exit(reason, returncode=CONTEXT_LOST)
        if name == baselines.OURS:
            pytest.fail(measured.details, pytrace=False)
        pytest.skip(f"{name} failed: {measured.reason}")
    benchmark.extra_info |= row(case, direction, name, measured, timer_and_ceilings()[1])
    benchmark.pedantic(lambda: None)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.stats.stats.data[:] = measured.seconds
