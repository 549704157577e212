"""Tasks: data of problems and answers, generated as they are needed."""

import re

from ..dataset import Task
from .arithmetic import DIGITS, ArithmeticTask, addition, result, with_work


def is_task(name: str) -> bool:
    """Whether `--data` names a task: addition-1 to -8, calculator or calculator-direct."""
    return re.fullmatch(r"addition-[1-8]|calculator(-direct)?", name) is not None


def open_task(name: str) -> Task:
    """The task of that name, which `is_task` accepts."""
    if name.startswith("addition"):
        return ArithmeticTask(name, {"+": int(name[-1])}, addition)
    return ArithmeticTask(name, DIGITS, result if name.endswith("direct") else with_work)
