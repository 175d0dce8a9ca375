"""The examples, commands, settings and links of the documentation hold."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from ssdd_jax import Layout, init_distilled, save_distilled
from ssdd_jax.cli import load_config, parse, shipped_configs
from ssdd_jax.registry import METHODS, NETS
from ssdd_jax.report.tables import CONTROL_LABELS, results_table
from ssdd_jax.settings.fields import CONTROLS
from ssdd_jax.settings.presets import PRESETS, default_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[a-z]*/*.md"))]
PAGES = [*GUIDES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md", "experiments/earlier.md"))]
in_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
in_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language=""):
    found = re.findall(r"^```([\w{}-]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def table(heading, page=README):
    """Return the rows of the first table below a heading of a page, its header among them and the rule left out."""
    below = page.read_text().partition(f"\n## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\|\n)+", below, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("|:") and "---" not in line]


def anchors(page):
    """Return what a link may name after #, as GitHub writes it: a heading in lower case, blanks as hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_takes_a_minute_to_read():
    assert len(README.read_text().splitlines()) <= 110


def test_the_readme_leads_to_every_page():
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README.read_text())}
    assert {str(page.relative_to(ROOT)) for page in PAGES if page != README and page.parent.name != "reference"} <= linked


@in_page
def test_every_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in links:
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_example_of_the_readme_reads_a_set(tmp_path, monkeypatch, capsys):
    images, reprs = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jax.random.normal(jax.random.key(1), (2, 3, 5))
    layout = Layout((8, 8, 1), (4, 4, 1), ("identity", "rot90"), ("stored", "stored"))
    (example,) = blocks(README, "python")
    save_distilled(tmp_path / re.search(r'load_distilled\("(.*?)"\)', example)[1], init_distilled(images, reprs, layout))
    monkeypatch.chdir(tmp_path)
    assert len(example.splitlines()) == 5
    exec(example, {})
    assert capsys.readouterr().out == "(2, 3, 8, 8, 1) (2, 3, 5)\n"


@pytest.mark.chaos
def test_the_one_call_of_the_library_distils_and_evaluates(capsys):
    (example,) = [block for block in blocks(ROOT / "docs/library.md", "python") if "pretrain_teacher" in block]
    exec(example.replace("steps=300", "steps=20"), {})
    error, linear, knn = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 < error < 2
    assert min(linear, knn) > 0.5


def test_the_example_of_the_library_distils(capsys):
    (example,) = [block for block in blocks(ROOT / "docs/library.md", "python") if "make_outer_step" in block]
    assert example.count("range(100)") == 1
    exec(example.replace("range(100)", "range(2)"), {})
    assert float(capsys.readouterr().out) > 0


@in_page
def test_the_targets_of_make_are_in_the_makefile(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@in_guide
def test_the_commands_of_a_run_are_understood(page, tmp_path, monkeypatch):
    # A guide shows a config file that registers something, and then its command.
    monkeypatch.chdir(tmp_path)
    for registry in (METHODS, NETS):
        for rows in ("_rows", "_objects"):
            monkeypatch.setattr(registry, rows, dict(getattr(registry, rows)))
    for line in "".join(blocks(page)).splitlines():
        if line.startswith("python -m ssdd_jax.main") and "..." not in line:
            args = shlex.split(line, comments=True)[3:]
            if (own := Path(args[args.index("--config") + 1] if "--config" in args else "")).suffix == ".py":
                (shown,) = blocks(page, "python")
                own.write_text(shown)
            parse(args)


@in_guide
def test_the_settings_that_are_named_exist(page):
    defaults, placeholders = default_config(), r"config\.(section\.)?key=value"
    for path in re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*)", re.sub(placeholders, "", page.read_text())):
        section = defaults
        for name in path.split("."):
            if section is defaults.methods and name in METHODS:
                break  # a method that the presets leave out is named by its kind
            assert name in section, f"config.{path}"
            section = section[name]


def test_the_tables_of_the_readme_name_all_methods_and_configs():
    methods = [name for row in table("The methods")[1:] for name in re.findall(r"`(\w+)`", row[0])]
    assert methods == list(PRESETS)
    assert sorted(row[0].strip("| `") for row in table("Configs")[1:]) == shipped_configs()


def test_the_table_of_the_demo_is_the_one_that_is_printed():
    demo = re.search(r"^demo:.*\n.*--config configs/(\w+)\.py", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    rows = [{"method": name, "student": None, "dataset": "digits", "seed": 0} for name in CONTROLS if name != "full"]
    sizes = dict(num_images=20, num_views=1, stored_scalars=2560, steps=0, seconds=1.0, repr_error=0.25)
    for name in load_config(demo).only.split(","):
        rows.append({"method": name, "student": "convnet", "dataset": "digits", "seed": 0} | sizes)
    for row in rows:
        row |= dict.fromkeys(("linear", "few_1", "few_5", "knn"), 0.5)
    header, printed = results_table({"dataset": {"name": "digits"}, "budget": {"scalars": 2560}, "rows": rows})
    found, *shown = table("The demo's table", ROOT / "docs" / "protocols.md")
    assert [cell.strip("| ") for cell in found] == header
    assert {row[0].strip("| ") for row in shown} == {row[0] for row in printed}
    assert CONTROL_LABELS["none"] in {row[0] for row in printed}
