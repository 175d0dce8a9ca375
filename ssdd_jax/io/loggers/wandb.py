"""Weights & Biases: a run of its project `config.name`, named after the workdir. WANDB_MODE=offline keeps it in WORKDIR/logs/wandb."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from ssdd_jax.io.loggers.logger import Logger, scalars, stage_and_seeds


class _Wandb:
    def __init__(self, workdir: Path, name: str, settings: dict[str, Any]):
        folder = workdir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        # Its capture of the terminal would break the bar of progress.
        quiet = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(project=name, name=workdir.resolve().name, dir=str(folder), config=settings, settings=quiet)
        self._stages: set[str] = set()

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        self._log(stage, step, scalars(stage, values))

    def picture(self, stage: str, step: int, name: str, picture: Image.Image) -> None:
        self._log(stage, step, {f"{stage}/{name}": wandb.Image(picture)})

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._run.log({title: wandb.Table(columns=list(header), data=[list(row) for row in rows])})

    def close(self) -> None:
        self._run.finish()

    def _log(self, stage: str, step: int, values: dict[str, Any]) -> None:
        # Its own steps must ascend over the run; every stage counts from 0.
        stage, _ = stage_and_seeds(stage)
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({**values, f"{stage}/step": step})


def make_wandb(workdir: Path, name: str, settings: dict[str, Any]) -> Logger:
    """Return a logger to Weights & Biases, which is configured by its own environment variables; its files are in WORKDIR/logs/wandb."""
    return _Wandb(workdir, name, settings)
