"""python -m kernels.doctor: report which kernels run on this machine, and why."""

import argparse
import os
import platform
import sys

import torch

from . import Unavailable, explain_auto, load, namesake, serving


def report() -> str:
    """The versions and GPUs that PyTorch sees, and what `auto` selects here for each operation."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "not installed"
    cuda, hip = torch.version.cuda, torch.version.hip
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    other_package = namesake.report()
    lines = {
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, built for {built_for}",
        "triton": triton,
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET", "not set"),
        "gpus": ", ".join(map(torch.cuda.get_device_name, gpus)) or "none visible to PyTorch",
        **({"import kernels": other_package} if other_package else {}),
        "--kernels auto": ": ".join(explain_auto()),
    } | {f"  {operation}": name for operation, name in serving(load("auto")).items()}
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.doctor", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare every operation with PyTorch")
    options = parser.parse_args(arguments)
    print(report())
    return _check() if options.check else 0


def _check() -> int:
    """Print whether each operation agrees with PyTorch; return the exit code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        ops = load("triton", device)
    except Unavailable as error:
        print(f"\ncannot check the kernels: {error}")
        return 2
    from . import check

    found = check.failures(ops, device)
    print()
    for name in ops._fields:
        print(f"{name}: {found.get(name, 'agrees with PyTorch')}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
