"""Checks a built site without a network: every link leads to a file and an anchor of the site, and nothing is loaded from elsewhere.

python docs/check_links.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What pages may load: the badge of the notebooks, which says "Open in Colab" where it cannot be had.
MAY_LOAD = {"https://colab.research.google.com/assets/colab-badge.svg"}


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what a browser loads to show it."""

    def __init__(self, file):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = {name: value for name, value in attrs if value}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        self.loaded.update(values[name] for name in ("src", "href") if name in values and (name == "src" or tag == "link"))
        self.links.update(values[name] for name in ("src", "href") if name in values)


def check(site):
    """Return a line for every link that leads nowhere, and for everything that is loaded from elsewhere."""
    pages = {file.resolve(): Page(file) for file in sorted(site.rglob("*.html")) if "_static" not in file.relative_to(site).parts}
    for file, page in pages.items():
        where = file.relative_to(site.resolve())
        for target in sorted(page.links):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded - MAY_LOAD and parts.scheme != "data":
                    yield f"{where} loads {target}"
                continue
            aim = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not aim.is_file():
                yield f"{where} links to {target}: no such file"
            elif parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].anchors:
                yield f"{where} links to {target}: no such anchor"


if __name__ == "__main__":
    sys.exit("\n".join(check(Path(sys.argv[1]))) or 0)
