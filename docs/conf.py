"""The site: `make docs` builds it into docs/_build/html, and a warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "loadgen"
extensions = ["myst_parser", "reference", "links"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "loadgen"
html_show_copyright = False
html_copy_source = False
smartquotes = False  # --set is no dash
nitpicky = True
myst_heading_anchors = 3  # as GitHub makes them
