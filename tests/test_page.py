"""The page: what it shows, and that nothing is left out."""
from html.parser import HTMLParser

import pandas as pd
import pytest
from invented_rows import BY, PROVENANCE, curves, rows, summary  # noqa: F401

from modmem import page as page_module
from modmem.figures import draw_tradeoff, save_figure
from modmem.page import build_report
from modmem.tables import TITLES, compare_published, load_published, save_table


class Page(HTMLParser):
    "Collect what a page shows and what it asks for."

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open += [tag] * (tag not in ("meta", "img"))
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attributes):  # <img />, <hr />
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path, summary, curves):
    folder = tmp_path / "tiny <world>"
    save_table(folder, "table_3", summary, compare_published(summary, load_published("table_3").query("start == 'FT'"), ["position"]), "A.", PROVENANCE)
    save_figure(folder, "tradeoff", draw_tradeoff(curves, "position", "block"), curves, compare_published(curves, None, BY), "B.", PROVENANCE)
    save_table(folder, "ablation", summary, compare_published(summary, None, ["position"]), "Ours alone.", PROVENANCE)
    (folder / "claims.md").write_text("# Claims\n\n| claim | verdict |\n| --- | --- |\n| a\\|b & <c> | **contradicted** |\n", encoding="utf-8")
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    text = "".join(page.words)
    assert not page.open and all(source.startswith(("data:image/svg+xml,%3C", "#")) for source in page.sources)
    assert "tiny <world>" in text and "a|b & <c>" in text and "contradicted" in text and "Ours alone." in text
    assert "77.50 (1.37)" in text and "75.00 (2.65)" in text and "3 runs, not 5" in text
    for title in TITLES.values():
        assert title in text
    assert text.count("not run, and the paper prints no values") == 4
    assert "47.47" in text and "slip: " in text and "1,282,567" in text  # tables that were not run


def test_files_of_somebody_else_are_no_artefacts(tmp_path):
    for name, text in {"notes.json": "[1]", "cut.json": "{", "notes.md": "", "README.md": "# Mine\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert 'id="notes"' not in (page := build_report(tmp_path).read_text(encoding="utf-8")) and "Mine" not in page


def test_the_page_of_an_empty_folder_says_so(tmp_path):
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    text = "".join(page.words)
    assert "".join(text.split()).count("notrun,andthepaperprintsnovalues") == 4 and "Nothing." in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\ntext\nmore", "<h2>A</h2>\n<p>text\nmore</p>"),
        ("- a\n  b\n- *c*", "<ul>\n<li>a\n  b</li>\n<li><em>c</em></li>\n</ul>"),
        ("`a*b*c <d>` **e** A_M* A_F\\S", "<p><code>a*b*c &lt;d&gt;</code> <strong>e</strong> A_M* A_F\\S</p>"),
        ("[a](#b) & <script>\n\n<p>c</p>", '<p><a href="#b">a</a> &amp; &lt;script&gt;</p>\n<p>&lt;p&gt;c&lt;/p&gt;</p>'),
    ],
)
def test_markdown_becomes_html(tmp_path, text, expected):
    assert page_module._render(text, tmp_path, page_module._make_renderer()) == expected


def test_notes_are_footnotes_and_each_artefact_has_its_own(tmp_path):
    noted = pd.DataFrame({"block": ["first", "last", "all"], "A_M (%)": "75.00", "A_M (%), paper": "77.50", "note": ["a slip", "", "a slip"]})
    for name in ("table_3", "ablation"):
        save_table(tmp_path, name, pd.DataFrame({"x": [1]}), noted, "A.", PROVENANCE)
    text = build_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    marks = [source for source in page.sources if source.startswith("#fn:")]
    assert len(marks) >= 4 and len(set(marks)) < len(marks) and text.count("a slip") == 2
    assert all(f'id="{source[1:]}"' in text for source in page.sources if source.startswith("#"))


def test_the_first_screen_has_the_dial_and_the_forest_if_they_are_there(tmp_path):
    assert "<img" not in build_report(tmp_path).read_text(encoding="utf-8")
    for name in ("tradeoff_dial", "claims_forest"):
        (tmp_path / f"{name}.svg").write_text("<svg/>")
    head, *_ = build_report(tmp_path).read_text(encoding="utf-8").partition("</header>")
    assert Page(head + "</header></body></html>").sources[:2] == ["#tradeoff", "data:image/svg+xml,%3Csvg/%3E"] and head.count("<img") == 2


def test_claims_are_a_table_with_each_in_full_folded_away(tmp_path):
    (tmp_path / "claims.md").write_text("# Claims\n\n| claim | verdict |\n| --- | --- |\n| a | holds |\n\n## a: holds\n\nBecause.\n\n## b: undecided\n")
    text = build_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    folded = text[text.index("<details>") : text.index("</details>")]
    assert '<td class="holds">holds</td>' in text and "<h3>a: holds</h3>\n<p>Because.</p>\n<h3>b: undecided</h3>" in folded
