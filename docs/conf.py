"""How the site is made: ``tox -e docs``.

Run with the repository as the sources' root, so that README.md, ARCHITECTURE.md and the pages
beside this file go together with the very links that they have on a Git host. A link to a program
or a configuration offers it for download.
"""

import synmanager

project = "synmanager"
version = release = synmanager.__version__

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "contrib/postgresql/README.md"]
exclude_patterns = ["**/.*", ".*", "benchmarks", "build", "dist", "tests"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # the same anchors as a Git host's

autodoc_member_order = "bysource"
autodoc_typehints = "description"  # signatures stay on a line
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"synmanager {version}"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["templates"]
html_additional_pages = {"index": "front.html"}  # the site's address leads to docs/index
