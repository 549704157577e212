"""Package metadata; tool settings are in pyproject.toml, tested versions in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="gpt-kernels",
    version="0.1.0",
    description="Karpathy's lecture GPT, carried to the speed of the hardware by Triton kernels",
    license="MIT",
    python_requires=">=3.10",
    # the folder kernels, by a name of its own: Hugging Face publishes a package called kernels
    packages=["gpt_kernels", *(f"gpt_kernels.{name}" for name in find_packages("kernels"))],
    package_dir={"gpt_kernels": "kernels"},
    package_data={"gpt_kernels": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy",
        "safetensors",
        "tqdm",
        "matplotlib",
    ],
    extras_require={
        "test": [
            *("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "tiktoken"),
            *("ruff", "mypy", "codespell", "tomli; python_version < '3.11'"),  # tomli: codespell
            *("import-linter", "setuptools>=70.1"),  # older ones need wheel to build one
            *("kernels", "transformers"),  # Hugging Face's, with which an environment is shared
        ],
        "weights": ["huggingface_hub", "tiktoken"],
        "log": ["wandb"],
        "bpe": ["tiktoken"],
        "data": ["datasets", "tiktoken"],
    },
)
