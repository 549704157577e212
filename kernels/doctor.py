"""python -m kernels.doctor: what runs on this machine, why, and what to do about it.

`examine` collects facts, `advice` makes sentences of them; only the first looks at the machine.
"""

import argparse
import json
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

import kernels

OLDEST, NEWEST = (3, 6), (3, 9)  # the versions of Triton that the kernels are tested with
OLDEST_TORCH = (2, 11)
DRIVER = Path("/dev/nvidiactl")  # exists where an NVIDIA driver is loaded


class Facts(NamedTuple):
    python: str
    torch: str
    cuda: str | None  # the CUDA that PyTorch was built for
    hip: str | None  # or AMD's counterpart
    triton: str | None
    numpy: str
    driver: bool  # an NVIDIA driver is loaded
    cards: tuple[str, ...]  # as PyTorch sees them
    capability: tuple[int, int] | None  # of the first card
    interpreter: bool  # TRITON_INTERPRET=1
    auto: str  # what --kernels auto means here: "triton" or "torch"
    reason: str
    serving: dict[str, str]  # operation -> implementation, under auto


def examine() -> Facts:
    triton, interpreter = _triton()
    auto, reason = kernels.explain_auto()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Facts(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        triton=triton,
        numpy=metadata.version("numpy"),
        driver=DRIVER.exists(),
        cards=tuple(torch.cuda.get_device_name(card) for card in cards),
        capability=torch.cuda.get_device_capability(0) if cards else None,
        interpreter=interpreter,
        auto=auto,
        reason=reason,
        serving=kernels.serving(kernels.load("auto")),
    )


def advice(facts: Facts) -> list[str]:
    """What to do here, a sentence or two for each thing that is not as fast as it could be."""
    return [*_about_card(facts), *_about_versions(facts), *_about_interpreter(facts)]


def _about_card(facts: Facts) -> list[str]:
    if facts.hip:
        return [
            "The kernels compile for AMD GPUs but have never run on one, so they are not offered "
            "here: --kernels torch (which auto chooses) runs PyTorch's own."
        ]
    if facts.capability and facts.capability < (8, 0):
        major, minor = facts.capability
        return [
            f"A card of compute capability {major}.{minor} has no tensor-core path in Triton any "
            "more: stay with --kernels torch (which auto chooses), and train in float16, because "
            "the card has no bfloat16."
        ]
    if facts.capability:
        return []
    if facts.driver and not facts.cuda:
        return [
            "There is an NVIDIA driver, but this PyTorch was built without CUDA: install the CUDA "
            "build of PyTorch (pytorch.org says how) to use the card."
        ]
    if facts.driver:
        return [
            "There is an NVIDIA driver, but PyTorch sees no card: `python -c 'import torch; "
            "torch.cuda.init()'` says why; often CUDA_VISIBLE_DEVICES is empty, or the driver is "
            f"older than CUDA {facts.cuda} needs."
        ]
    return [
        "There is no card, so everything runs through PyTorch on the CPU, and that works. To run "
        "the Triton kernels here, slowly, set TRITON_INTERPRET=1 and use --kernels triton."
    ]


def _about_versions(facts: Facts) -> list[str]:
    found = []
    if _number(facts.torch) < OLDEST_TORCH:
        found.append(f"PyTorch {facts.torch} is too old: pip install --upgrade 'torch>=2.11'.")
    if facts.triton is None:
        if facts.capability:
            found.append("Triton is not installed: pip install 'triton>=3.6' to use the kernels.")
    elif _number(facts.triton) < OLDEST:
        found.append(
            f"Triton {facts.triton} is older than 3.6, which the kernels need: upgrade PyTorch, "
            "which brings its own, or use --kernels torch."
        )
    elif _number(facts.triton) > NEWEST:
        found.append(
            f"Triton {facts.triton} is newer than 3.9, the newest that was tested: run `make test` "
            "and `python -m bench.ledger --check` once, and use --kernels torch if they fail."
        )
    return found


def _about_interpreter(facts: Facts) -> list[str]:
    if not facts.interpreter:
        return []
    found = []
    if facts.capability:
        found.append(
            "TRITON_INTERPRET=1 runs the kernels in Python although there is a card: unset it."
        )
    if _number(facts.numpy) >= (2, 4) and _number(facts.triton) < (3, 7):
        found.append(
            f"The interpreter of Triton {facts.triton} does not work with NumPy {facts.numpy}: "
            "pip install 'numpy<2.4', or use Triton 3.7 or newer."
        )
    return found


def report(facts: Facts) -> str:
    built_for = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {facts.hip}" if facts.hip else "CPU"
    capability = ".".join(map(str, facts.capability or ()))
    lines = {
        "python": facts.python,
        "torch": f"{facts.torch}, built for {built_for}",
        "triton": facts.triton or "not installed",
        "interpreter": "on (TRITON_INTERPRET=1)" if facts.interpreter else "off",
        "cards": ", ".join(facts.cards) + f" (compute capability {capability})"
        if facts.cards
        else "none that PyTorch sees",
        "--kernels auto": f"{facts.auto}: {facts.reason}",
    } | {f"  {operation}": name for operation, name in facts.serving.items()}
    width = max(map(len, lines))
    sentences = advice(facts) or ["Nothing is left to do: the kernels run at full speed here."]
    return "\n".join(
        [*(f"{name:{width}}  {value}" for name, value in lines.items()), "", *sentences]
    )


def _triton() -> tuple[str | None, bool]:
    """Its version, and whether it interprets."""
    try:
        import triton
    except ImportError:
        return None, False
    version = triton.__version__
    return version, _number(version) >= OLDEST and bool(triton.knobs.runtime.interpret)


def _number(version: str) -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(major), int(minor)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the facts and advice as JSON")
    parser.add_argument("--check", action="store_true", help="run every operation against PyTorch")
    options = parser.parse_args(arguments)
    facts = examine()
    if options.json:
        print(json.dumps(facts._asdict() | {"advice": advice(facts)}, indent=1))
    else:
        print(report(facts))
    return _check() if options.check else 0


def _check() -> int:
    """Print what is wrong with each operation here, as far as something is; 1 if so."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        ops = kernels.load("triton", device)
    except kernels.Unavailable as error:
        print(f"\nnothing to check: {error}")
        return 2
    from kernels import check

    found = check.failures(ops, device)
    print()
    for name in ops._fields:
        print(f"{name}: {found.get(name, 'as PyTorch computes it')}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
