"""What the project says of itself in several places agrees, and the site has all pages and leads nowhere that is not."""

import re
from pathlib import Path

import ssdd_jax
from docs.check_links import check

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version():
    assert f"\nversion: {ssdd_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_site_has_every_page():
    listed = set(re.findall(r"(?:root|file): (\S+)", (ROOT / "docs/_toc.yml").read_text()))
    pages = {file.relative_to(ROOT) for file in (ROOT / "docs").rglob("*.md") if "_build" not in file.parts}
    assert {str(page.with_suffix("")) for page in pages} <= listed
    assert all((ROOT / f"{page}.md").is_file() for page in listed)


def test_the_reference_has_every_public_name():
    described = re.findall(r"^\.\. (?:autoclass|autofunction|data):: (\w+)", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert sorted(described) == sorted(ssdd_jax.__all__)


def test_what_leads_nowhere_on_the_site_is_found(tmp_path):
    (tmp_path / "b.html").write_text("<h1 id='top'>b</h1>")
    fine = "<a href='b.html#top'></a><a href='#own' id='own'></a><a href='https://example.org'></a>"
    (tmp_path / "a.html").write_text(f"{fine}<img src='c.png'><a href='b.html#end'></a><script src='https://example.org/x.js'></script>")
    assert [line.split("a.html ")[1] for line in check(tmp_path)] == [
        "links to b.html#end: no such anchor",
        "links to c.png: no such file",
        "loads https://example.org/x.js",
    ]
