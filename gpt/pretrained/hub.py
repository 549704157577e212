"""Models of the Hugging Face hub, in the hub's own cache, by commit and compared with their hashes.

The cache names a file by its hash: its sha256, or git's sha1 for a small one.
"""

import functools
import hashlib
import re
from fnmatch import filter as matching
from pathlib import Path

from .. import UserError, downloads
from .state_files import find_weights

ORIGINAL = {  # the models of OpenAI -> their commits
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
NAME = re.compile(r"((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@(\w[\w./-]*))?")
SLOWEST = 250_000  # bytes a second, 2 Mbit/s: a slower download is given up


@functools.cache  # the same commit for a model's config and its weights
def download(name: str) -> tuple[Path, str]:
    """The folder of the model NAME or NAME@REVISION, and its name with the commit.

    What is cached is used offline, and if the hub does not answer. Raises UserError.
    """
    missing = f"--init-from {name}: no such run or file"
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{missing}; give a path, or a model of the Hugging Face hub such as gpt2")
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        raise UserError(
            f"{missing}, and a model of the hub needs a library: pip install huggingface_hub"
        ) from None
    repository, revision = found[1], found[2] or ORIGINAL.get(found[1], "main")
    if repository in ORIGINAL:
        repository = f"openai-community/{repository}"
    problem = "is cached, and nothing is downloaded offline; give a path"
    if not downloads.is_offline():
        problem = "has weights in safetensors or pytorch_model.bin; give another"
        try:
            revision = _fetch(repository, revision)
        except Exception as error:  # the library's own, and those of its HTTP library
            reason = type(error).__name__
            problem = f"can be downloaded ({reason}); check the name and the connection"
    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    folder = Path(str(config)).parent  # it is None, or another object, for what is not cached
    if not isinstance(config, str) or find_weights(folder) is None:
        raise UserError(f"{missing}, and no model of the Hugging Face hub that {problem}")
    for file in _needed([path.name for path in folder.iterdir()]):
        check_hash(folder / file)
    return folder, f"{repository}@{folder.name}"


def _needed(files: list[str]) -> list[str]:
    """The files of a model that we read, weights last."""
    files = [file for file in files if "/" not in file]
    weights = matching(files, "model*.safetensors") or matching(files, "pytorch_model*.bin")
    return [*matching(files, "*.json"), *matching(files, "*.txt"), *weights]


def _fetch(repository: str, revision: str) -> str:
    """Download what the cache lacks of a model, and return its commit.

    File by file: Python would wait for the pool of threads that `snapshot_download` uses. Raises
    what the library does, and TimeoutError.
    """
    from huggingface_hub import HfApi, hf_hub_download

    get = functools.partial(hf_hub_download, repository)
    describe = functools.partial(HfApi().model_info, revision=revision, files_metadata=True)
    model = downloads.within(downloads.LIMIT, lambda: describe(repository))
    sizes = {file.rfilename: file.size or 0 for file in model.siblings or ()}
    for file in _needed(list(sizes)):
        seconds = downloads.LIMIT + sizes[file] / SLOWEST
        downloads.within(seconds, functools.partial(get, file, revision=model.sha))
    # the cache notes the commit of the revision, and finds it again offline
    downloads.within(downloads.LIMIT, lambda: get("config.json", revision=revision))
    return str(model.sha)


def check_hash(path: Path) -> None:
    """Raise UserError if a file of the hub's cache does not have the hash that its link names.

    Where the cache has no links, as on Windows, there is nothing to compare with.
    """
    name = path.readlink().name if path.is_symlink() else ""
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest = {64: hashlib.sha256(), 40: git}.get(len(name))
    if digest is None:
        return
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != name:
        raise UserError(f"{path} has a wrong hash; remove {path.resolve()} to download it again")
