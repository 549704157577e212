"""Compares the kernels that this GPU loads with bench/ledger/ledger.json."""

import json
from functools import partial

import torch
import triton

from bench.ledger.__main__ import COMMITTED
from bench.ledger.compiled import architectures, compile_launch, describe, record
from bench.ledger.rules import changes
from bench.prove.stage import Outcome, failed, not_available, passed
from bench.prove.stages.repeat import select, served_names
from bench.workloads.operations import CASES, UPDATES
from bench.workloads.steps import STEPS
from kernels.common import launch

WORKLOADS = (*CASES, *UPDATES, *STEPS)
PARTS = partial(served_names, WORKLOADS)


def work(part: str, seconds: float) -> Outcome:
    architecture = launch.architecture(torch.device("cuda"))
    rows, version = json.loads(COMMITTED.read_text()), triton.__version__
    if version not in rows:
        return not_available(f"bench/ledger/ledger.json has no kernels by triton {version}")
    known = {row["key"]: row for row in rows[version] if architecture in row["architectures"]}
    loaded = {}
    for case in select(part, WORKLOADS):
        loaded |= loaded_kernels(case)
    both = loaded.keys() & known.keys()
    expected = [{column: known[key][column] for column in loaded[key]} for key in sorted(both)]
    if lines := changes(list(loaded.values()), expected):
        return failed(f"{len(lines)} of {len(loaded)} kernels differ from the ledger", lines=lines)
    return passed(f"{len(loaded)} kernels are equal to the ledger's")


def loaded_kernels(case) -> dict[str, dict]:
    """Registers, spills and shared memory of each kernel of `case`, as loaded by the driver."""
    architecture = launch.architecture(torch.device("cuda"))
    found = {}
    for one in record(case, architecture):
        kernel = compile_launch(one)
        kernel._init_handles()  # loads the kernel
        key = describe(one, kernel)
        found[key] = {
            "target": "80" if architecture in architectures("80") else str(architecture),
            "key": key,
            "registers": kernel.n_regs,
            "spills": kernel.n_spills,
            "shared": kernel.metadata.shared,
        }
    return found
