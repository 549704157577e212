"""python -m kernels.doctor: report which kernels run on this machine, why, and what to improve.

`examine` collects facts about the machine; `advice` turns them into sentences.
"""

import argparse
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from . import Unavailable, explain_auto, load, namesake, serving

OLDEST, NEWEST = (3, 6), (3, 9)  # the versions of Triton that the kernels are tested with
OLDEST_TORCH = (2, 11)
DRIVER = Path("/dev/nvidiactl")  # exists where an NVIDIA driver is loaded


class Facts(NamedTuple):
    """What the advice depends on."""

    python: str
    torch: str
    cuda: str | None  # the version of CUDA that PyTorch was built for
    hip: str | None  # the version of ROCm that PyTorch was built for
    triton: str | None
    numpy: str
    driver: bool  # an NVIDIA driver is loaded
    gpus: tuple[str, ...]  # as PyTorch sees them
    capability: tuple[int, int] | None  # of the first GPU
    interpreter: bool  # TRITON_INTERPRET=1
    auto: str  # what --kernels auto means here: "triton" or "torch"
    reason: str
    serving: dict[str, str]  # operation -> implementation with auto
    namesake: str | None = None  # what `import kernels` means, where two packages have that name


def examine() -> Facts:
    """Collect the facts about this machine and this process."""
    triton, interpreter = _triton()
    auto, reason = explain_auto()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Facts(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        triton=triton,
        numpy=metadata.version("numpy"),
        driver=DRIVER.exists(),
        gpus=tuple(torch.cuda.get_device_name(gpu) for gpu in gpus),
        capability=torch.cuda.get_device_capability(0) if gpus else None,
        interpreter=interpreter,
        auto=auto,
        reason=reason,
        serving=serving(load("auto")),
        namesake=namesake.report(),
    )


def advice(facts: Facts) -> list[str]:
    """What to improve on this machine besides the reason of `auto`; empty if nothing."""
    triton = _number(facts.triton or "3.6")
    has_gpu, interprets = bool(facts.gpus), facts.interpreter
    hidden = facts.driver and not has_gpu
    no_gpu = not (facts.driver or has_gpu or facts.hip)
    old_torch, new_triton = _number(facts.torch) < OLDEST_TORCH, triton > NEWEST
    breaks = interprets and triton < (3, 7) and _number(facts.numpy) >= (2, 4)
    sentences = {
        "There is an NVIDIA driver, but this PyTorch was built without CUDA: to use the GPU, "
        "install the CUDA build of PyTorch (see pytorch.org).": hidden and not facts.cuda,
        "There is an NVIDIA driver, but PyTorch sees no GPU: `python -c 'import torch; "
        "torch.cuda.init()'` prints the reason. Often CUDA_VISIBLE_DEVICES is empty, or the "
        f"driver is too old for CUDA {facts.cuda}.": hidden and facts.cuda,
        "There is no GPU, so all operations run through PyTorch on the CPU, which works. To run "
        "the Triton kernels here, slowly, set TRITON_INTERPRET=1 and use --kernels triton.": no_gpu,
        f"PyTorch {facts.torch} is too old: pip install --upgrade 'torch>=2.11'.": old_torch,
        f"Triton {facts.triton} is newer than 3.9, the newest tested version: run `make test` and "
        "`python -m bench.ledger --check`, and use --kernels torch if they fail.": new_triton,
        "TRITON_INTERPRET=1 runs the kernels in Python although there is a GPU: unset it.": (
            has_gpu and interprets
        ),
        f"The interpreter of Triton {facts.triton} does not work with NumPy {facts.numpy}: pip "
        "install 'numpy<2.4', or use Triton 3.7 or newer.": breaks,
    }
    return [sentence for sentence, applies in sentences.items() if applies]


def report(facts: Facts) -> str:
    """The facts and the advice as text."""
    built_for = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {facts.hip}" if facts.hip else "CPU"
    capability = ".".join(map(str, facts.capability or ()))
    lines = {
        "python": facts.python,
        "torch": f"{facts.torch}, built for {built_for}",
        "triton": facts.triton or "not installed",
        "interpreter": "on (TRITON_INTERPRET=1)" if facts.interpreter else "off",
        "gpus": ", ".join(facts.gpus) + f" (compute capability {capability})"
        if facts.gpus
        else "none visible to PyTorch",
        **({"import kernels": facts.namesake} if facts.namesake else {}),
        "--kernels auto": f"{facts.auto}: {facts.reason}",
    } | {f"  {operation}": name for operation, name in facts.serving.items()}
    width = max(map(len, lines))
    full_speed = ": the kernels run at full speed here" * (facts.auto == "triton")
    sentences = advice(facts) or [f"Nothing to improve{full_speed}."]
    shown = [f"{name:{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*shown, "", *sentences])


def _triton() -> tuple[str | None, bool]:
    """The version of Triton, or None, and whether its interpreter is enabled."""
    try:
        import triton
    except ImportError:
        return None, False
    version = triton.__version__
    return version, _number(version) >= OLDEST and bool(triton.knobs.runtime.interpret)


def _number(version: str) -> tuple[int, int]:
    """The major and minor version."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.doctor", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare every operation with PyTorch")
    options = parser.parse_args(arguments)
    print(report(examine()))
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
