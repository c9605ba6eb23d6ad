"""Sphinx configuration: ``make docs`` builds the pages of this folder with warnings as errors, without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gems

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "GEMS"
author = "The GEMS authors"
project_copyright = "The GEMS authors"
release = version = gems.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "gems_reference"]
exclude_patterns = ["_build", "_ext", "_static"]
smartquotes = False  # they turn --option into a dash
suppress_warnings = ["misc.highlighting_failure"]  # shortened JSON in examples

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"GEMS {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
