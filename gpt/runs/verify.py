"""Check every checkpoint of a run against its checksums, while it trains or afterwards.

    python -m gpt.runs.verify RUN

Exits with 2 if one of them is damaged.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from .. import UserError
from ..config.base import Config, option
from ..config.cli import parse
from ..process import protect_streams
from . import checkpoint
from .run_state import ALL_KINDS


@dataclass(frozen=True)
class VerifyConfig(Config):
    """What to check."""

    run: str = option("out", "the folder of a run", positional=True)


def verify(path: Path) -> list[str]:
    """Print a line for each whole checkpoint; return a sentence for each damaged one."""
    damages = []
    for name, kinds in checkpoint.names(path, ALL_KINDS).items():
        try:
            record, _ = checkpoint.load(path, name, kinds)
            print(f"{name}: step {record.get('step')}, {', '.join(kinds)} match their checksums")
        except UserError as error:
            damages.append(str(error))
    return damages


def main(arguments: list[str]) -> int:
    try:
        options = parse(VerifyConfig(), arguments, "Check the checkpoints of a run.")
        damages = verify(Path(options.run))
    except UserError as error:
        damages = [str(error)]
    for damage in damages:
        print(f"gpt.runs.verify: {damage}", file=sys.stderr)
    return 2 if damages else 0


if __name__ == "__main__":
    protect_streams()
    sys.exit(main(sys.argv[1:]))
