"""Lines of metrics on the terminal."""

from pathlib import Path
from typing import Any

from ssdd_jax.io.loggers.logger import Logger
from ssdd_jax.terminal import say


class _Console:
    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        say(f"{stage} {step}: " + ", ".join(f"{key} {_short(value)}" for key, value in values.items()))

    def close(self) -> None:
        pass


def make_console(workdir: Path, name: str, settings: dict[str, Any]) -> Logger:
    """Return a logger that prints every line."""
    return _Console()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
