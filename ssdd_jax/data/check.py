"""What is in a dataset, compared with what is published about it; and a sheet of its images to look at."""

import io
import math
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from ssdd_jax.data import remarks
from ssdd_jax.data.dataset import Dataset, Images
from ssdd_jax.data.prepare import damaged_arrays, open_prepared, prepare, read_prepared_manifest
from ssdd_jax.data.published import PUBLISHED, Published, format_statistics, is_padded, statistics_warning
from ssdd_jax.data.source import Source
from ssdd_jax.data.sources import archives, open_source
from ssdd_jax.data.splits import BAD_LISTED, Options
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import file_digest, write_bytes
from ssdd_jax.progress import Display

_COLUMNS = ("split", "images", "published", "a class has", "mean", "std", "converted", "skipped", "shared")

_SHEET_WIDTH = 1600
_MOST_CLASSES, _MOST_COLUMNS, _MOST_UNLABELLED = 20, 16, 64
# Small images are enlarged to sides of about this many pixels, large ones reduced to at most that many.
_CELL, _LARGEST_CELL = 64, 160
_GAP, _MARGIN, _FONT_SIZE = 4, 16, 15
_LABEL_WIDTH = 260
_PAPER, _INK = (232, 232, 232), (0, 0, 0)


@dataclass(frozen=True)
class Report:
    """What a check has found.

    Attributes:
      title: the dataset's name, number of classes and stored shape.
      rows: one per split, for the table.
      lines: anything else worth knowing.
      warnings: differences from what is published; the data can be used.
      problems: what makes the data unusable.
      folder: where the dataset is prepared.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    folder: Path

    def table(self) -> Table:
        """Return the rows for printing."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column in ("split", "mean", "std") else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def check(source_text: str, data_dir: str | Path, options: Options, cache: Path | None = None, display: Display | None = None) -> Report:
    """Open and prepare a dataset, unless it is prepared already, and report what is in it against what is published.

    Args:
      source_text: see `open_source`.
      data_dir: see `open_source`.
      options: see `prepare`.
      cache: see `prepare`.
      display: for the progress bars.

    Raises:
      DataError: it cannot be opened or prepared.
    """
    display = display or Display()
    source = open_source(source_text, data_dir)
    folder = prepare(source, options, cache, display, notes=False)
    dataset, manifest = open_prepared(folder), read_prepared_manifest(folder)
    if manifest is None:
        raise DataError(f"{str(folder)!r} has been removed in the meantime, expected a prepared dataset; check again")
    splits = manifest["splits"]
    lines, warnings = remarks.notes(source, manifest), []
    for name, about in splits.items():
        for other in ("train", "unlabelled"):
            if about.get(f"also_in_{other}"):
                lines.append(f"{name}: {about[f'also_in_{other}']:,} images are {other} images too")
        if skipped := about["skipped"]:
            listed = ", ".join(f"{image['name']!r} ({image['reason']})" for image in skipped[:BAD_LISTED])
            more = f" and {len(skipped) - BAD_LISTED:,} more" if len(skipped) > BAD_LISTED else ""
            lines.append(f"{name}: skipped {listed}{more}")
    published = PUBLISHED.get(source_text)
    if published and published.mean:
        size = published.statistics_size
        lines.append(
            f"published mean {format_statistics(published.mean)} and std {format_statistics(published.std)} of {size}x{size} images"
            + (", which padding changes" if is_padded(published, manifest["options"]) else "")
        )
    if difference := statistics_warning(source_text, manifest):
        warnings.append(difference)
    warnings += _count_warnings(source_text, published, dataset)
    warnings += remarks.warnings(source_text, dataset, manifest)
    file_lines, file_warnings = _compare_files(source_text, source, display)
    warnings += file_warnings
    problems = [
        f"the prepared {name} in {str(folder)!r} has changed since it was prepared; delete the folder and it is prepared again"
        for name in damaged_arrays(folder)
    ]
    used = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    lines += [
        *file_lines,
        f"prepared in {folder}: {_bytes(used)}, {'damaged' if problems else 'intact'}; {_bytes(free)} of disk space are free",
        f"fingerprint {dataset.fingerprint}",
    ]
    height, width, channels = next(iter(splits.values()))["shape"][1:]
    num_classes = f"{len(dataset.class_names)} classes" if dataset.class_names else "no labels"
    return Report(
        f"{dataset.name}: {num_classes}, stored as {height}x{width}x{channels}",
        tuple(_row(name, split_about, dataset, published) for name, split_about in splits.items()),
        tuple(lines),
        tuple(warnings),
        tuple(problems),
        folder,
    )


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """Write a PNG with the first images of every split: by class where there are labels, up to 20 classes; else up to 64.

    The same dataset gives the same sheet.

    Args:
      dataset: images uint8 (n, H, W, C) with C 1 or 3.
      path: the PNG file to write.

    Raises:
      InputError: it cannot be written there.
    """
    panels = [_draw_split(dataset, name) for name in dataset.splits]
    sheet = Image.new("RGB", (max(panel.width for panel in panels), sum(panel.height for panel in panels)), _PAPER)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    content = io.BytesIO()
    sheet.save(content, "PNG")
    try:
        write_bytes(path, content.getvalue())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the sheet {str(path)!r}: {reason}; choose another file") from error


def _row(name: str, about: Mapping[str, Any], dataset: Dataset, published: Published | None) -> tuple[str, ...]:
    labels = dataset.splits[name].labels
    each = "–"
    if labels is not None:
        counts = np.bincount(labels, minlength=len(dataset.class_names))
        low, high = int(counts.min()), int(counts.max())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    expected = published.splits.get(name) if published else None
    return (
        name,
        f"{about['shape'][0]:,}",
        "–" if expected is None else f"{expected:,}",
        each,
        format_statistics(about["mean"]),
        format_statistics(about["std"]),
        f"{sum(about['converted'].values()):,}",
        f"{len(about['skipped']):,}",
        ", ".join(f"{about[key]:,}" for key in ("also_in_train", "also_in_unlabelled") if key in about) or "–",
    )


def _count_warnings(source_text: str, published: Published | None, dataset: Dataset) -> list[str]:
    if published is None:
        return []
    warnings = []
    for name in (*published.splits, *(name for name in dataset.splits if name not in published.splits)):
        found = len(dataset.splits[name].images) if name in dataset.splits else 0
        if found != published.splits.get(name, 0):
            warnings.append(f"{source_text}: the {name} split has {found:,} images, the published one {published.splits.get(name, 0):,}")
    if len(dataset.class_names) != published.classes:
        warnings.append(f"{source_text}: {len(dataset.class_names)} classes, {published.classes} are published")
    return warnings


def _compare_files(source_text: str, source: Source, display: Display) -> tuple[list[str], list[str]]:
    """Compare the files that were read with their published checksums; return lines and warnings."""
    checksums = {archive.file: archive.md5 for archive in archives(source_text) if archive.md5}
    if not checksums:
        return [], []
    same, others, unknown = [], [], []
    with display.task("checksums", len(source.files)) as task:
        for done, file in enumerate(source.files, 1):
            published = checksums.get(file.name)
            if published is None:
                unknown.append(file.name)
            elif (found := file_digest(file, "md5")) == published:
                same.append(file.name)
            else:
                others.append(f"{file.name} ({found}, published {published})")
            task.advance(done)
    lines = [f"md5 as published: {', '.join(same)}"] * bool(same) + [f"no md5 published: {', '.join(unknown)}"] * bool(unknown)
    if not others:
        return lines, []
    return lines, [
        f"{source_text}: md5 not as published: {', '.join(others)}; where counts and statistics are as published, "
        "they were repacked (as Debian does), otherwise they are other files"
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _draw_split(dataset: Dataset, name: str) -> Image.Image:
    split, font = dataset.splits[name], cast(ImageFont.FreeTypeFont, ImageFont.load_default(_FONT_SIZE))
    images = cast(Images, split.images)
    count, height, width, channels = images.shape
    scale = _cell_scale(max(height, width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    classes = np.unique(np.linspace(0, len(dataset.class_names) - 1, _MOST_CLASSES).round().astype(int)) if split.labels is not None else ()
    titles = [_shorten(_drawable(label, dataset.class_names[label]), font, _LABEL_WIDTH) for label in classes]
    left = _MARGIN + (max(math.ceil(font.getlength(title)) for title in titles) + 2 * _GAP if titles else 0)
    columns = min(_MOST_COLUMNS, max(1, (_SHEET_WIDTH - _MARGIN - left) // (cell[0] + _GAP)))
    header = f"{_shorten(dataset.name, font, _SHEET_WIDTH // 3)} {name}: {count:,} images of {height}x{width}x{channels}"
    if split.labels is None:
        shown = np.arange(min(count, _MOST_UNLABELLED // columns * columns))
        rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    else:
        rows = [np.flatnonzero(split.labels == label)[:columns] for label in classes]
        if len(classes) < len(dataset.class_names):
            header += f", {len(classes)} of {len(dataset.class_names)} classes"
    if channels not in (1, 3):
        header += ", their first channel"
    line = sum(font.getmetrics())
    pitch = max(cell[1], line) + _GAP
    top = _MARGIN + line + 2 * _GAP
    right = max(left + max(map(len, rows)) * (cell[0] + _GAP), _MARGIN + math.ceil(font.getlength(header)))
    panel = Image.new("RGB", (right + _MARGIN, top + len(rows) * pitch + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((_MARGIN, _MARGIN), header, _INK, font)
    for number, row in enumerate(rows):
        y = top + number * pitch
        if titles:
            draw.text((_MARGIN, y + (pitch - _GAP) // 2), titles[number], _INK, font, anchor="lm")
        for column, image in enumerate(images[row]):
            picture = Image.fromarray(image if channels == 3 else image[..., 0])
            picture = picture.resize(cell, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR)
            panel.paste(picture, (left + column * (cell[0] + _GAP), y + (pitch - _GAP - cell[1]) // 2))
    return panel


def _cell_scale(side: int) -> float:
    return max(1, round(_CELL / side)) if side <= _LARGEST_CELL else _LARGEST_CELL / side


def _drawable(label: int, name: str) -> str:
    """Return a class name in letters that Pillow's own font has; if it loses some, with the class's number."""
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return plain if plain.isascii() else f"{label}: {plain}"


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text on one line, cut to at most `width` pixels."""
    text = " ".join(text.encode("ascii", "replace").decode().split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
