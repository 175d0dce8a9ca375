"""Trackio: a run of its project `config.name`, named after the workdir, in $TRACKIO_DIR; `trackio show` shows it, without an account."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ssdd_jax.io.loggers.logger import Logger, flat_settings, scalars

trackio: Any = import_module("trackio")


class _Trackio:
    def __init__(self, workdir: Path, name: str, settings: dict[str, Any]):
        run = workdir.resolve().name
        self._run = trackio.init(project=name, name=run, config=flat_settings(settings), resume="allow", embed=False)

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        self._run.log(scalars(stage, values), step=step)

    def picture(self, stage: str, step: int, name: str, picture: Image.Image) -> None:
        self._run.log({f"{stage}/{name}": trackio.Image(picture)}, step=step)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._run.log({title: trackio.Table(columns=list(header), data=[list(row) for row in rows])})

    def close(self) -> None:
        self._run.finish()


def make_trackio(workdir: Path, name: str, settings: dict[str, Any]) -> Logger:
    """Return a logger to Trackio, which is configured by its own environment variables."""
    return _Trackio(workdir, name, settings)
