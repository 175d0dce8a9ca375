"""Whether the files of a run are, byte for byte, as they were written."""

from collections.abc import Sequence
from pathlib import Path

from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.checkpoints import damage, is_step
from ssdd_jax.io.manifest import MANIFEST, SUMS, damaged_files
from ssdd_jax.io.published import refuse_published
from ssdd_jax.progress import Display
from ssdd_jax.runtime.encode import damaged_encoding


def verify(workdir: Path, sets: Sequence[Path] = ()) -> None:
    """Check every distilled set, export, checkpoint and file of representations or experts below `workdir`, or the given folders.

    Each is reported. Of a run that has ended also its settings, metrics, results and report.

    Raises:
        InputError: there is nothing to verify, or a published set is named, whose digests nobody has written down.
        DataError: something is damaged; the message names all of it.
    """
    refuse_published(sets, "verify")
    display = Display()
    folders = list(sets) or sorted({file.parent for kind in (SUMS, MANIFEST) for file in workdir.rglob(kind)})
    reasons = {folder: _damaged(folder) for folder in folders}
    if not sets:
        kept = workdir / "checkpoints"
        checkpoints = [file for file in kept.rglob("*") if is_step(file)]
        reasons |= {folder: damage(folder) for folder in sorted(checkpoints)}
        reasons |= {file: damaged_encoding(file) for file in sorted(kept.rglob("*.npy"))}
    if not reasons:
        raise InputError(f"nothing to verify in {workdir}, expected a run's folder; give its folder as --workdir, or a set's as --set")
    if not sets and (workdir / "spec.json").is_file() and not (workdir / SUMS).is_file():
        display.print(f"open     {workdir}: the run has not ended, so nothing vouches for its results, metrics and settings yet")
    for place, reason in reasons.items():
        display.print(f"damaged  {place}: {reason}" if reason else f"ok       {place}")
    bad = [place for place, reason in reasons.items() if reason]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(reasons)} are damaged: {', '.join(map(str, bad))}; copy them again, or remove them to make them again"
        )


def _damaged(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    try:
        names = damaged_files(folder)
    except DataError as error:
        return str(error)
    return f"{', '.join(names)} changed since written" if names else ""
