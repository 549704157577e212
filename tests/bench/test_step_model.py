"""The nodes of a captured training step: their number, and the work of those that are known."""

import pytest

from bench import step_model
from bench.training import configuration


@pytest.mark.parametrize(("preset", "most"), [("lecture", 220), ("gpt2", 380)])
def test_the_graph_of_a_step_has_few_nodes(preset, most):
    """No gradient is filled with zeros or accumulated, no weight is cast before a product."""
    nodes = step_model.record(preset)
    names = [node.name for node in nodes]
    assert len(nodes) <= most
    assert "zero_" not in names
    assert names.count("add_") <= 1  # the number of steps that were not finite
    assert names.count("_to_copy") <= 5


def test_bytes_and_flops_are_those_of_the_equations():
    nodes = step_model.record("lecture", n_layer=1)
    config = configuration("lecture")
    rows, C, V = config.batch_size * config.model.block_size, 384, 128  # 65, padded
    T, size = config.model.block_size, 2  # bytes of bf16
    found = {node.name: node for node in nodes}
    assert found["attention_forward_kernel"].flops == 2 * rows * T * C  # QK^T and PV, half of each
    assert found["gemm_kernel"].flops == 2 * rows * C * 4 * C
    products = sum(node.flops for node in nodes if not node.name.startswith("attention"))
    assert products == 3 * 2 * rows * C * (12 * C + V)
    # x; total and y, with x_bias, weight, bias, seed and two statistics
    forward = [node.bytes for node in nodes if node.name == "add_layer_norm_forward_kernel"]
    assert forward[0] == 4 * rows * C * size + C * (4 + 4 + 4) + 8 + 2 * 4 * rows


def test_a_node_takes_the_longest_of_its_limits():
    nodes = (step_model.Node("", *work) for work in ((1e9, 1e9), (1e6, 1e12), (1, 1)))
    expected = [1e9 / 4.23e12, 1e12 / 720e12, 2e-6]
    assert [node.seconds("H200") for node in nodes] == pytest.approx(expected)
