"""The kernels that this card loads are those of bench/ledger/ledger.json: registers, spills, memory."""

import json

import torch
import triton

from bench.cases import CASES, UPDATES
from bench.ledger.__main__ import COMMITTED
from bench.ledger.compiled import compile_launch, describe, without_fakes
from bench.prove.stages import failed, not_there, passed
from bench.prove.stages.repeat import cases_of, names
from bench.steps import STEPS
from kernels import triton_ops
from kernels.common import launch

CASES_AND_STEPS = (*CASES, *UPDATES, *STEPS)


def work(part: str, seconds: float) -> dict:
    committed = rows_for(launch.architecture(torch.device("cuda")))
    if committed is None:
        return not_there(f"bench/ledger/ledger.json has no kernels by triton {triton.__version__}")
    found, seen = [], 0
    for case in cases_of(part, CASES_AND_STEPS):
        for key, figures in loaded(case).items():
            seen += 1
            if key not in committed:
                found.append(f"{key} is not in the ledger")
                continue
            expected = {name: committed[key][name] for name in figures}
            if figures != expected:
                found.append(f"{key} has {figures}, and in the ledger {expected}")
    if found:
        return failed(f"{len(found)} of {seen} kernels differ", lines=found)
    return passed(f"{seen} kernels are those of the ledger")


def loaded(case) -> dict[str, dict]:
    """The figures of every kernel that `case` would launch here, as the driver has loaded it."""
    architecture = launch.architecture(torch.device("cuda"))
    with launch.record(architecture) as launches:
        case.run(triton_ops.OPS, "cuda")
    found = {}
    for one in map(without_fakes, launches):
        kernel = compile_launch(one)
        kernel._init_handles()  # loads it, and with that the driver's figures
        found[describe(one, kernel)] = {
            "registers": kernel.n_regs,
            "spills": kernel.n_spills,
            "shared": kernel.metadata.shared,
        }
    return found


def rows_for(architecture: int) -> dict[str, dict] | None:
    """The committed rows by key, of the code that a card of this architecture runs."""
    rows = json.loads(COMMITTED.read_text()).get(triton.__version__) if COMMITTED.exists() else None
    if rows is None:
        return None
    return {row["key"]: row for row in rows if architecture in row["cards"]}


def parts() -> dict[str, float]:
    return dict.fromkeys(names(CASES_AND_STEPS), 1)
