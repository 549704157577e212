"""The settings of `pytest bench` (bench/test_operations.py)."""

import torch


def pytest_configure(config):
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "median"
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # more threads would measure the load of the other cores
