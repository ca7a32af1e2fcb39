"""Configuration of the site; docs/build.sh builds it."""

import pathlib
import sys
import tomllib

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))
PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = copyright = "The authors of enn"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "reference",
]
exclude_patterns = ["_build", "testbed"]  # Tables that pages include.

html_theme = "sphinx_book_theme"
html_title = "enn"
html_theme_options = {
    "path_to_docs": "docs",
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "light"}

# Links to headings, as `page.md#heading`; mathematics between dollars.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
# The notebooks are stored with their outputs; the tests run them.
nb_execution_mode = "off"

# Annotations as written, by their short names, and not again in the text.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Further attributes", "Attributes")]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
