"""The site: Sphinx reads the repository itself, so that every link holds in a clone, on a forge and here."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# Shell cells of notebooks call the command of this environment.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from docstrings import as_rst  # noqa: E402 (stands beside this file)

# tqdm says so in every notebook without widgets, with the path of this machine.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

project = "scdfm"
author = "the scdfm authors"
version = release = metadata.version("scdfm")
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/*", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".venv*", ".git", "build", "src", "tests", "demo", "docs/_*", "**/*.csv", "**/*.png", "**/*.py"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every notebook is executed anew: a page that shows an older program would be worse than none.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/svg+xml", 0)]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
default_role = "code"

smartquotes_action = "qe"  # without dashes: --out is no –out
html_theme = "furo"
html_title = "scdfm"
html_static_path = ["_static"]
html_extra_path = ["_extra", "llms.txt"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
linkcheck_timeout = 10


def _docstring(app, what, name, obj, options, lines) -> None:
    lines[:] = as_rst(lines)


def _title(app, docname: str, source: list[str]) -> None:
    """Tables that a benchmark wrote without a heading take the name of their file."""
    if docname.startswith("benchmarks/results/") and not source[0].startswith("# "):
        source[0] = f"# {docname.rsplit('/', 1)[1].replace('_', ' ').capitalize()}\n\n{source[0]}"


def setup(app) -> None:
    """Docstrings are plain text with `code` and hanging `name: text` blocks; Sphinx wants reStructuredText."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("source-read", _title)
