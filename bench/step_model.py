"""A model of a training step: each of its kernels, and the time that it should take at least.

    python -m bench.step_model                 print the times, and the largest differences
    python -m bench.step_model --write         keep them in bench/results/

A step of a preset runs on tensors without storage, as a CUDA graph captures it on a GPU of compute
capability 9.0. Each launch of our kernels and each of PyTorch's operations is a node of the graph,
and takes the longest of

    its bytes / the rate of copies      each operand read or written once
    its FLOPs / the rate of products    products, attention counting the causal half
    2 us                                the mean of PyTorch's small kernels in a replay on an H200

The rates are the data sheet's times the fraction that an H200 reached. The model does not know
instructions that are not FLOPs (exp, Philox, masks), operands that are read more often than once,
the time between kernels, or what cuBLAS and sorting launch besides one kernel each.
"""

import argparse
import datetime
import warnings
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import results
from bench.prove.stages.profile import CUBLAS, OTHERS
from bench.report.tables import markdown
from bench.workloads.steps import TrainingStep
from gpt.hardware import PEAK_FLOPS
from kernels import triton_ops
from kernels.common import launch
from kernels.losses import linear_cross_entropy

BANDWIDTH = {"A100": 2.04e12, "H100": 3.35e12, "H200": 4.8e12, "B200": 8e12, "RTX 4090": 1.01e12}
OF_BANDWIDTH, OF_PEAK = 4.23 / 4.8, 720 / 989  # measured on an H200
SHORTEST, COMPARED, LEAST = 2e-6, "H200", 20  # seconds; us: the differences to list
LAYERS = {"lecture": 6, "gpt2": 12}
PRODUCTS = {"attention_forward_kernel": 2, "attention_backward_q_kernel": 3}
PRODUCTS["attention_backward_kv_kernel"] = 4  # of (T, D) and (D, T) or (T, T) and (T, D)
NO_KERNEL = ("empty", "_unsafe_view", "lift_fresh", "detach")


class Node(NamedTuple):
    name: str
    bytes: float
    flops: float

    def seconds(self, gpu: str) -> float:
        rates = OF_BANDWIDTH * BANDWIDTH[gpu], OF_PEAK * PEAK_FLOPS[gpu]
        return max(self.bytes / rates[0], self.flops / rates[1], SHORTEST)

    @property
    def kind(self) -> str:
        """The kernel, as in the profile of a step on a GPU."""
        if self.name.endswith("_kernel"):
            return self.name
        return CUBLAS if self.flops else OTHERS


class Recorder(TorchDispatchMode):
    """Collects PyTorch's operations that launch a kernel."""

    def __init__(self, nodes: list[Node]):
        super().__init__()
        self.nodes = nodes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        returns, arguments = func._schema.returns, func._schema.arguments
        writes = any(one.alias_info and one.alias_info.is_write for one in arguments)
        is_view = any(one.alias_info for one in returns) and not writes
        name = func._schema.name.removeprefix("aten::")
        if func.namespace != "aten" or is_view or name.startswith(NO_KERNEL):
            return out
        flops = 0.0
        if "mm" in name:  # the last tensor is (K, N)
            flops = 2.0 * out.numel() * _tensors(args)[-1].shape[0]
        # by their identity, since an operation in place returns its operand
        tensors = {id(x): x for x in _tensors((args, list((kwargs or {}).values()), out))}
        if tensors:  # else it asks for the dtype or device of something
            self.nodes.append(Node(name, sum(map(_bytes, tensors.values())), flops))
        return out


def record(preset: str, **sizes: Any) -> list[Node]:
    """The nodes of a training step. sizes: changes to the preset's ModelConfig."""
    nodes: list[Node] = []

    def product(a, b, beta, out):  # cuBLAS adds up in fp32; a CPU has to widen its operands
        nodes.append(Node("addmm", sum(map(_bytes, (a, b, out))), 2.0 * a.numel() * b.shape[1]))

    with (
        launch.handled(lambda one: nodes.append(of_launch(one)), 90),
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(linear_cross_entropy, "_product", product),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        sizes = {"n_layer": LAYERS[preset]} | sizes
        step = TrainingStep(preset).step(torch.device("cpu"), triton_ops.OPS, **sizes)
        step.run(step.number)  # makes the state of the optimizer
        nodes.clear()
        with Recorder(nodes):
            step.run(step.number)
    return nodes


def of_launch(one: launch.Launch) -> Node:
    name = one.kernel.fn.__name__
    named = dict(zip(one.kernel.arg_names, one.arguments, strict=False))
    flops = 0.0
    if name in PRODUCTS:
        (B, H, T, D), Tk = named["q_ptr"].shape, named["Tk"]
        flops = PRODUCTS[name] * 2.0 * B * H * T * Tk * D / 2
    elif name == "gemm_kernel":
        flops = 2.0 * named["M"] * named["N"] * named["K"]
    if name in ("adamw_update_kernel", "adamw_square_sum_kernel"):
        # a gradient; for the update also parameter and moments, read and written, and the copy
        size = one.options["DTYPE"].primitive_bitwidth // 8
        if name == "adamw_update_kernel":
            size += 24 + size * one.options["FOLLOWS"]
        return Node(name, len(named["chunks_ptr"]) * one.options["CHUNK"] * size, flops)
    return Node(name, sum(map(_bytes, _tensors(one.arguments))), flops)


def _tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(list(values)) if torch.is_tensor(value)]


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def steps(recorded: dict[str, list[Node]], profile: list[dict]) -> list[dict]:
    """A row for each preset: the nodes of its step, and its time on each GPU."""

    def measured(preset):
        return sum(row["microseconds"] for row in profile if row["preset"] == preset) / 1e3

    return [
        {
            "preset": preset,
            "nodes": len(nodes),
            "GB": f"{sum(one.bytes for one in nodes) / 1e9:.1f}",
            "TFLOP": f"{sum(one.flops for one in nodes) / 1e12:.2f}",
            **{f"{gpu}, ms": f"{_milliseconds(nodes, gpu):.2f}" for gpu in BANDWIDTH},
            f"measured on an {COMPARED}, ms": f"{measured(preset):.2f}",
        }
        for preset, nodes in recorded.items()
    ]


def kernels(recorded: dict[str, list[Node]], profile: list[dict]) -> list[dict]:
    """A row for each kind of kernel, modelled and measured, the largest difference first."""
    rows = []
    for preset, nodes in recorded.items():
        measured = {row["kernel"]: row for row in profile if row["preset"] == preset}
        kinds: dict[str, list[Node]] = {}
        for node in nodes:
            kinds.setdefault(node.kind, []).append(node)
        modelled = {kind: 1e3 * _milliseconds(some, COMPARED) for kind, some in kinds.items()}
        losses = {k: measured[k]["microseconds"] - modelled[k] for k in kinds.keys() & measured}
        for kind in sorted(losses, key=losses.__getitem__, reverse=True):
            if abs(losses[kind]) >= LEAST:
                cells = {"preset": preset, "kernel": kind, "nodes": len(kinds[kind])}
                cells["launches"] = measured[kind]["launches"]
                cells["modelled, µs"] = f"{modelled[kind]:,.0f}"
                cells["measured, µs"] = f"{measured[kind]['microseconds']:,.0f}"
                rows.append(cells | {"difference, µs": f"{losses[kind]:,.0f}"})
    return rows


def _milliseconds(nodes: list[Node], gpu: str) -> float:
    return 1e3 * sum(node.seconds(gpu) for node in nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the files in bench/results/")
    arguments = parser.parse_args()
    recorded = {preset: record(preset, dropout=0.0) for preset in LAYERS}  # as it was profiled
    (gpu,) = (one for one in results.by_gpu() if COMPARED in one["gpu"]["name"])
    parts = gpu["stages"]["profile"]["parts"].values()
    profile = [row for part in parts for row in part.get("figures", [])]
    tables = {"step-model": steps(recorded, profile)}
    tables["step-model-kernels"] = kernels(recorded, profile)
    about = {"schema": results.SCHEMA, "date": str(datetime.date.today()), "machine": "Model"}
    about["commit"] = results.commit()
    for name, rows in tables.items():
        print(markdown(rows), end="\n\n")
        if arguments.write:
            path = results.RESULTS / f"{name}.json"
            results.write(path, about | {"table": name, "rows": rows})


if __name__ == "__main__":
    main()
