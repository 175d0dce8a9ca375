"""report/results.md with its pictures, and report/index.html, from the files of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ssdd_jax.core.distilled import num_images
from ssdd_jax.io.files import write_bytes
from ssdd_jax.report import figures
from ssdd_jax.report.contents import write_page
from ssdd_jax.report.run import FINGERPRINT, VIEWS_CAPTION, DrawnSet, definitions, facts, read_run
from ssdd_jax.report.tables import results_tables, to_markdown, views_table

NO_PLOTS = "loss curves skipped: matplotlib is not installed; pip install ssdd-jax[plots]"


def write_report(workdir: str | Path) -> list[str]:
    """Write report/results.md with its PNGs, and report/index.html, into the folder of a finished run.

    Args:
        workdir: holds results.json, and metrics.jsonl, distilled/ and report/nearest.safetensors for curves and pictures.

    Returns:
        One line for the user for each thing that was left out.

    Raises:
        InputError: results.json is missing or is not valid JSON.

    Example:
        >>> write_report("runs/digits")  # doctest: +SKIP
        []
    """
    workdir = Path(workdir)
    run, notes = read_run(workdir), []
    results, folder = run.results, workdir / "report"
    (_, main), *others = results_tables(results).items()
    sections = [introduction(results), to_markdown(*main), definitions(results)]
    for title, table in others:
        sections += [f"## {title}", to_markdown(*table)]
    views = views_table(results)
    if views is not None:
        sections += ["## Views", to_markdown(*views), VIEWS_CAPTION]

    if run.curves:
        try:
            content = figures.loss_picture(run.curves)
        except ImportError:
            notes.append(NO_PLOTS)
        except Exception as error:  # a picture is not worth losing a run
            notes.append(f"loss curves skipped: matplotlib raised {type(error).__name__}: {error}")
        else:
            write_bytes(folder / "loss.png", content)
            sections += ["## Outer loss", "![outer loss of every method against the outer step](loss.png)"]

    for method, drawn in run.sets.items():
        sections += _method_section(folder, method, drawn)
    # Written last, so that every picture it shows exists.
    write_bytes(folder / "results.md", ("\n\n".join(sections) + "\n").encode())
    return [*notes, *run.notes, *write_page([run], folder / "index.html")]


def introduction(results: Mapping[str, Any]) -> str:
    """Return the heading of results.md and what the run is about."""
    line = lambda name, text: f"- {name}: `{text}`" if name == FINGERPRINT else f"- {name}: {text}"
    return "\n".join([f"# {results['name']}", "", *(line(name, text) for name, text in facts(results)), "", "## Results"])


def _method_section(folder: Path, method: str, drawn: DrawnSet) -> list[str]:
    """Write the pictures of a method and return the paragraphs that show them."""
    distilled, mean, std = drawn.distilled, drawn.mean, drawn.std
    pictures = {"images": figures.images_picture(distilled, mean, std)}
    captions = {"images": figures.all_or_first(num_images(distilled), figures.MAX_IMAGES, "distilled images")}
    if (bases := distilled.images.bases) is not None:
        shown = figures.all_or_first(len(bases), figures.MAX_BASES, "image bases")
        pictures["bases"] = figures.bases_picture(bases, distilled.layout.base_shape)
        captions["bases"] = f"{shown}, each stretched to its own range; mid-grey is 0"
    if len(distilled.layout.views) > 1:
        pictures["views"] = figures.views_picture(distilled, mean, std)
        first = figures.all_or_first(num_images(distilled), figures.MAX_ROWS, "distilled images")
        captions["views"] = f"{first}, one per row, under every view"
    paragraphs = [f"## {method}, seed {drawn.seed}"]
    for kind, picture in pictures.items():
        name = f"{method}-{kind}.png"
        write_bytes(folder / name, figures.png(picture))
        paragraphs += [f"{captions[kind]}:", f"![{captions[kind]}]({quote(name)})"]
    return paragraphs
