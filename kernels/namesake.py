"""Hugging Face's package `kernels`, which has the name of this folder.

Installed, this library is called gpt_kernels, and the two never meet. In a clone, `import kernels`
finds this folder, also for transformers, which means the other package. So the other's submodules
are found after ours (`__path__`), and its attributes where we have none. `kernels.load`, a function
here and a submodule there, stays ours; `from kernels.load import ...` finds theirs.
"""

import sys
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = f"gpt-kernels ({Path(__file__).parent})"
LOADED = "_huggingface_kernels"  # the module of their __init__.py, in sys.modules


@cache
def installed() -> tuple[str, Path] | None:
    """Return the version and the folder of Hugging Face's package, or None."""
    try:
        found = metadata.distribution("kernels")
    except metadata.PackageNotFoundError:
        return None
    return found.version, Path(str(found.locate_file("kernels")))


def report() -> str | None:
    """Return what `import kernels` means here if Hugging Face's package is installed, or None."""
    if not (other := installed()):
        return None
    theirs, spec = "Hugging Face's kernels {} ({})".format(*other), find_spec("kernels")
    if spec and spec.origin == str(other[1] / "__init__.py"):
        return f"{theirs}; {OURS} is imported as gpt_kernels"
    return f"{OURS}; names that it does not define are those of {theirs}"


class _Shared(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Do not let an imported submodule replace a function of ours."""
        if not (isinstance(value, ModuleType) and name in self.__all__):
            super().__setattr__(name, value)


def share(package: ModuleType) -> None:
    """Let our package, if its name is `kernels`, contain the submodules of the other one."""
    if package.__name__ == "kernels" and (other := installed()):
        package.__path__ = [*package.__path__, str(other[1])]  # its spec keeps ours alone
        package.__class__ = _Shared


def attribute(name: str) -> Any:
    """Return `name` of Hugging Face's package, or a submodule of either package.

    Raises `AttributeError` if there is none, and `ImportError` if their package cannot be loaded.
    """
    missing = f"module {__package__!r} has no attribute {name!r}"
    if __package__ != "kernels" or (name.startswith("_") and name != "__version__"):
        raise AttributeError(missing)
    if not (other := installed()):
        raise AttributeError(
            f"{missing}; it is {OURS}: for Hugging Face's package of that name, pip install kernels"
        )
    if find_spec(f"kernels.{name}"):
        return import_module(f"kernels.{name}")
    try:
        theirs = _load(other[1])
    except (ImportError, OSError) as error:
        raise ImportError(
            f"{OURS} has no {name!r}, and Hugging Face's kernels {other[0]} ({other[1]}) cannot be "
            f"loaded: {error}; run `pip install --force-reinstall kernels`, or start Python in "
            "another folder"
        ) from error
    return getattr(theirs, name)


def _load(folder: Path) -> ModuleType:
    """Execute their `__init__.py`; what it imports from `kernels` is found through our package."""
    if LOADED not in sys.modules:
        spec: Any = spec_from_file_location("kernels", folder / "__init__.py")
        sys.modules[LOADED] = module_from_spec(spec)  # before it runs: imports may be circular
        try:
            spec.loader.exec_module(sys.modules[LOADED])
        except BaseException:
            del sys.modules[LOADED]
            raise
    return sys.modules[LOADED]
