"""Export the best model of a run as a folder that `transformers` loads as GPT-2.

python -m gpt.pretrained.export RUN FOLDER
"""

import sys
from pathlib import Path

from .. import UserError
from .gpt2 import export


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    run, folder = arguments
    try:
        export(Path(run), Path(folder))
    except (UserError, OSError) as error:
        print(f"gpt.pretrained.export: {error}", file=sys.stderr)
        return 2
    print(f"written to {folder}: GPT2LMHeadModel.from_pretrained({folder!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
