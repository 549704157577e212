"""The rungs of docs/ladder on a card: right in bf16, and how fast."""

import torch

from bench.compare import Failed, attempt
from bench.prove.stages import Outcome, failed, passed
from bench.recipes import ladder
from bench.timer import DeviceStopwatch, measure_ceilings

CARD = torch.device("cuda")


def work(operation: str, seconds: float, device: torch.device = CARD) -> Outcome:
    right, lines = [], []
    for path in ladder.paths():
        if path.parent.name == operation:
            rung = ladder.load(path)
            errors = attempt(ladder.check, rung, device)
            if isinstance(errors, Failed):
                lines.append(f"{rung}: {errors.reason}")
            elif not errors.is_right:
                lines.append(f"{rung}: error {errors.ours:.1e}, PyTorch's {errors.pytorch:.1e}")
            else:
                right.append(rung)
    watch = DeviceStopwatch(device)
    ceilings = measure_ceilings(device, watch)
    rows = ladder.measure(right, device, watch, ceilings, seconds / 2) if right else []
    more = {"figures": rows, "lines": [*lines, *map(ladder.told, rows)]}
    if lines:
        return failed(lines[0], **more)
    return passed(f"{len(right)} rungs are right; {ladder.told(rows[-1])}", **more)


def parts() -> dict[str, float]:
    return dict.fromkeys(ladder.TIMED, 1)
