"""Sphinx's settings of the book; build.py lays out the source that they are used on."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import modmem  # noqa: E402

project, author, release = "modmem", "the modmem authors", modmem.__version__
html_title, html_short_title = "modmem", "modmem"
project_copyright = "2026 onwards, the modmem authors"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design", "extension"]
root_doc = "index"
exclude_patterns = ["extra"]
templates_path = ["templates"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!modmem\b).*"), ("py:.*", r"modmem\.[\w.]*\b_\w+"), ("py:class", r"(?!.*\.).*")]
suppress_warnings = ["myst.header"]  # artefacts' texts start where they like

nb_execution_mode = "off"  # outputs are those that are committed, which tests make again
nb_mime_priority_overrides = [("html", "text/html", 20)]
nb_render_markdown_format = "myst"  # so that links of outputs are checked, too
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show {type}", "Hide {type}"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static", os.environ["BOOK_STATIC"]]
html_extra_path = [os.environ["BOOK_EXTRA"]]
html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False  # the reference lists all names
html_show_search_summary = False  # a page opened from a file may not fetch others
html_last_updated_fmt = None
math_number_all = False
mathjax_path = "tex-svg.js"  # of this site: no network
mathjax3_config = {"tex": {"tags": "none"}, "svg": {"fontCache": "global"}, "options": {"enableMenu": False}}
pygments_style, pygments_dark_style = "friendly", "github-dark"
