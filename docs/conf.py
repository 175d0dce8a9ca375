"""Settings of the site, which `make docs` builds: the sources are the pages of the repository where they are, see _toc.yml."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import ssdd_jax

project = "ssdd_jax"
author = copyright = "the ssdd_jax developers"
version = release = ssdd_jax.__version__

extensions = [
    "myst_nb",
    "sphinx_external_toc",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
external_toc_path = "docs/_toc.yml"
external_toc_exclude_missing = True
# Environments and what runs, builds and tools write need not be walked.
exclude_patterns = [".*", "**/.*", "build", "dist", "docs/_build", "requirements", "runs", "tests", "*.egg-info"]
# There are none yet in a checkout without notebooks/.
suppress_warnings = ["etoc.glob"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
# Links to headings, as code hosts write them.
myst_heading_anchors = 4
nb_execution_mode = "off"
highlight_language = "none"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Their types are said in words.
napoleon_attr_annotations = False

html_theme = "sphinx_book_theme"
default_role = "py:obj"
html_title = f"ssdd_jax {version}"
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    # The sidebar has the search.
    "navbar_persistent": [],
}
html_css_files = ["site.css"]
html_static_path = ["_static"]
html_copy_source = False
html_math_renderer = "mathml"

doctest_global_setup = """
import jax, jax.numpy as jnp, numpy as np
from ssdd_jax import *
"""


def escape(app, what, name, obj, options, lines):
    """Keep stars and bars of docstrings, which are products and norms there and would be markup here."""
    session = False
    for number, line in enumerate(lines):
        session = line.lstrip().startswith(">>>") or (session and bool(line.strip()))
        if not session:
            lines[number] = re.sub(r"[*|]", r"\\\g<0>", line)


def shorten(app, what, name, obj, options, signature, returned):
    """Write arrays as the source does: Float[Array, "n d"]."""
    modules = r"~?(jaxtyping|jaxlib\._jax|jax|collections\.abc|typing)\.(?=[A-Z])"
    return tuple(text and re.sub(modules, "", text) for text in (signature, returned))


def visit_math(self, node):
    """Write a formula as MathML, which browsers draw without a script: pages need no network."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def mark_doctests(app, doctree):
    """Let the doctest builder run what pages show: sessions, fenced as `pycon`, and in the guides programs before them."""
    kinds = {"pycon": "doctest"} | ({"python": "testcode"} if app.env.docname.startswith("docs/howto/") else {})
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") in kinds:
            block["testnodetype"], block["groups"], block["options"] = kinds[block["language"]], ["default"], {}


def check_names(app, env):
    """Warn, which ends the build, where the reference lacks a public name."""
    described = env.get_domain("py").objects
    for name in ssdd_jax.__all__:
        if f"ssdd_jax.{name}" not in described:
            logging.getLogger(__name__).warning("ssdd_jax.%s is public and not in docs/reference/api.md", name)


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
    app.connect("doctree-read", mark_doctests)
    app.connect("env-check-consistency", check_names)
