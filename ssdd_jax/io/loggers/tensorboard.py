"""TensorBoard's event files, by tensorboardX, which needs no TensorFlow; `tensorboard --logdir WORKDIR/logs/tensorboard` shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
import tensorboardX.summary
from PIL import Image

from ssdd_jax.io.loggers.logger import Logger, flat_settings, scalars
from ssdd_jax.io.markdown import to_markdown


class _TensorBoard:
    def __init__(self, folder: Path, settings: dict[str, Any]):
        self._writer = tensorboardX.SummaryWriter(str(folder))
        # `SummaryWriter.add_hparams` would write them into a folder of their own, as another run.
        for summary in tensorboardX.summary.hparams(flat_settings(settings), {}):
            self._writer.file_writer.add_summary(summary)  # pyright: ignore[reportOptionalMemberAccess]

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        for name, value in scalars(stage, values).items():
            self._writer.add_scalar(name, value, step)
        # A dashboard follows the run, and a run that is killed has logged what it has done.
        self._writer.flush()

    def picture(self, stage: str, step: int, name: str, picture: Image.Image) -> None:
        pixels = np.asarray(picture)
        self._writer.add_image(f"{stage}/{name}", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._writer.add_text(title, to_markdown(header, rows))

    def close(self) -> None:
        self._writer.close()


def make_tensorboard(workdir: Path, name: str, settings: dict[str, Any]) -> Logger:
    """Return a logger that writes event files into WORKDIR/logs/tensorboard."""
    return _TensorBoard(workdir / "logs" / "tensorboard", settings)
