"""Metadata of the package; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
# The curves of results.md, and the page next to it: its template and the library that draws its curves.
PLOTS = ["matplotlib", "jinja2", "vl-convert-python>=1.9"]
DEMO = PLOTS
# What tests run them with.
NOTEBOOKS = ["jupytext", "nbclient", "ipykernel"]
# Loggers, each by its name in `config.logger`.
TENSORBOARD = ["tensorboardX>=2.6"]
WANDB = ["wandb>=0.17"]

# Read as text: importing the package would need every dependency before pip has installed any.
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "ssdd_jax" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
if VERSION is None:
    raise RuntimeError('ssdd_jax/__init__.py must have a line of the form __version__ = "1.2.3"')

setup(
    name="ssdd-jax",
    version=VERSION[1],
    description="Self-supervised dataset distillation in JAX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The ssdd_jax developers",
    keywords=["dataset distillation", "self-supervised learning", "representation learning", "JAX"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    # The configs live at the top of the repository and ship in the wheel, so that an installed package finds them by name.
    packages=[*find_packages(include=["ssdd_jax", "ssdd_jax.*"]), "ssdd_jax.configs"],
    package_dir={"ssdd_jax.configs": "configs"},
    package_data={"ssdd_jax.report": ["templates/*"]},
    install_requires=[
        "jax>=0.5.3",
        "jaxlib>=0.5.3",
        "numpy",
        "flax>=0.10.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.23",
        "ml-collections>=1.0",
        "absl-py",
        "pillow",
        "safetensors",
        "rich",
        "jaxtyping",
        # For k-means, and for the digits.
        "scikit-learn",
    ],
    extras_require={
        "demo": DEMO,
        "plots": PLOTS,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        # Not among what the tests need: it excludes pillow 13. Its test runs where it is installed.
        "trackio": ["trackio>=0.43"],
        # What the benchmark compares with.
        "bench": ["torch"],
        # tensorflow-datasets imports importlib_resources without declaring it.
        "tfds": ["tensorflow-datasets>=4.9.9", "array-record", "importlib_resources"],
        # For experiments/embed_timm.py.
        "timm": ["timm"],
        # Earlier versions run code that comes with a dataset.
        "hf": ["datasets>=4", "huggingface-hub"],
        # neural-tangents uses parts of jax that 0.6 removed; orbax-checkpoint 0.11.24 still installs with jax 0.5 but cannot save on it.
        "neural-tangents": ["neural-tangents", "jax<0.6", "orbax-checkpoint<0.11.24"],
        "dev": [
            *DEMO,
            *NOTEBOOKS,
            *TENSORBOARD,
            *WANDB,
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "beartype",
            "ruff",
            "pyright[nodejs]",
        ],
        "docs": ["sphinx", "myst-nb", "sphinx-book-theme", "sphinx-external-toc", "sphinx-copybutton"],
        "release": ["build", "twine", "check-jsonschema"],
    },
)
