"""A stage as a program: python -m bench.prove.stages bench.prove.stages.repeat --seconds 60 --report FILE."""

import importlib
import sys

from bench.prove.stages import work_through

if __name__ == "__main__":
    stage = importlib.import_module(sys.argv[1])
    work_through(stage.parts(), stage.work, sys.argv[2:])
