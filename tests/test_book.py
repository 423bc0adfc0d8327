"""The book: what its pages are made of (cheap), and the built site (slow): links, sizes, names, and a browser's view of it."""
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

TOP = Path(__file__).parents[1]
NBS, FIGURES = TOP / "nbs", TOP / "figures"
sys.path.insert(0, str(NBS / "_book"))

import build  # noqa: E402
import notebooks  # noqa: E402
import radius  # noqa: E402
from modmem.files import exclusively  # noqa: E402
from names import find_definitions, list_notebooks, read_notebook  # noqa: E402

METHOD = [pytest.param(path, id=page) for page, path in list_notebooks().items() if page.startswith("1_")]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    "The source of all pages, without executed notebooks, and what its pages know of each other."
    folder = tmp_path_factory.mktemp("book")
    return folder / "source", build.lay_out(folder, {})


@pytest.fixture(scope="module")
def texts(laid_out):
    "Page -> its markdown, without fenced blocks."
    source, _ = laid_out
    found = {path.relative_to(source): path.read_text(encoding="utf-8") for path in source.rglob("*.md")}
    for path in source.rglob("*.ipynb"):
        if "extra" not in path.relative_to(source).parts:
            found[path.relative_to(source)] = "\n\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown")
    return {path: notebooks.FENCE.sub("", text) for path, text in found.items() if "extra" not in path.parts}


def slug(heading: str) -> str:
    "The anchor of a heading, as on a forge."
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)|\{[\w:]+\}", lambda match: match[1] or "", heading)
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_link_of_the_book_leads_to_a_page_an_anchor_or_a_file(laid_out, texts):
    source, book = laid_out
    anchors = {path: {slug(heading) for heading in re.findall(r"^#{1,3} (.+)$", text, flags=re.MULTILINE)} for path, text in texts.items()}
    equations = {f"eq-{number}" for number in book.equations}
    broken = []
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            address, _, anchor = target.partition("#")
            page = Path(os.path.normpath(path.parent / address)) if address else path
            if not re.match(r"\w+:", target) and (page not in texts or anchor and anchor not in anchors[page] | equations):
                broken.append(f"{path}: {target}")
        for target in re.findall(r'(?:href|src)="([^"#]+)"', text):
            file = source / "extra" / os.path.normpath(path.parent / target)
            made = Path(os.path.normpath(path.parent / target)).with_suffix(".md")
            if not re.match(r"\w+:", target) and not file.is_file() and made not in texts and not target.startswith("_static/"):
                broken.append(f"{path}: {target}")
    assert sum(text.count("](") for text in texts.values()) > 300
    assert not broken


def test_names_between_backticks_are_links_to_what_they_name(laid_out, texts):
    _, book = laid_out
    full_names = {definition.full_name for definition in book.definitions}
    linked = [(path, name) for path, text in texts.items() for name in re.findall(r"\{py:obj\}`[^`<]*<([\w.]+)>`", text)]
    assert not [(path, name) for path, name in linked if name not in full_names]
    assert len(linked) > 300
    text = notebooks.rewrite("`LinfBall` and `radius` of `19_projected_adam`, see Eq. 9; not [`LinfBall`](x.ipynb)", "1_method/16_blocks", NBS / "1_method", book)
    assert text.startswith("{py:obj}`LinfBall <modmem.projection.LinfBall>` and `radius` of [`19_projected_adam`](19_projected_adam.ipynb), see [Eq. 9](#eq-9)")
    assert text.endswith("[`LinfBall`](x.ipynb)")


def test_every_public_name_has_one_entry(laid_out):
    source, book = laid_out
    for module in {definition.module for definition in book.definitions}:
        tree = (TOP / "modmem" / f"{module}.py").read_text(encoding="utf-8")
        public = set(re.findall(r"'(\w+)'", re.search(r"__all__ = \[(.*?)\]", tree, flags=re.DOTALL)[1]))
        entries = re.findall(rf"^\.\. auto\w+:: modmem\.{module}\.(\w+)$", (source / "api" / f"{module}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert sorted(entries) == sorted(public)


def test_each_page_has_a_place_in_the_tree(laid_out):
    source, book = laid_out
    listed = []
    for path in [*source.glob("*/index.md"), source / "index.ipynb"]:
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else read_notebook(path).cells[-1].source
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL):
            listed += [os.path.normpath((path.parent / line).relative_to(source)) for line in tree.splitlines() if line and line[0] != ":"]
    assert sorted(page for page in listed if page in book.pages) == sorted(set(book.pages) - {"index"})
    assert len(set(listed)) == len(listed)


def test_code_is_marked_as_package_or_lesson_and_plumbing_is_gone(laid_out):
    source, book = laid_out
    for page in book.pages:
        cells = [cell for cell in read_notebook(source / f"{page}.ipynb").cells if cell.cell_type == "code"]
        assert all(("exported" in cell.metadata["tags"]) != ("lesson" in cell.metadata["tags"]) for cell in cells)
        assert not [cell.source for cell in cells if re.search(r"^#\|", cell.source, flags=re.MULTILINE) or "nbdev_export" in cell.source]
    before = {cell.id: cell.source for cell in read_notebook(NBS / "1_method" / "18_projection.ipynb").cells}
    after = {cell.id: cell for cell in read_notebook(source / "1_method" / "18_projection.ipynb").cells}
    assert after["linf-ball"].source == before["linf-ball"].removeprefix("#| exports\n") and "exported" in after["linf-ball"].metadata["tags"]
    assert after["linf-ball-look"].source == before["linf-ball-look"] and "lesson" in after["linf-ball-look"].metadata["tags"]
    assert "hide-input" in after["imports"].metadata["tags"] and not {"default-exp", "export"} & set(after)


def test_a_page_says_how_long_it_takes_and_offers_its_notebook(laid_out):
    source, book = laid_out
    for page in book.pages:
        glance = read_notebook(source / f"{page}.ipynb").cells[1].source
        assert re.search(r"^\d+ minutes? to read", glance, flags=re.MULTILINE)
        offered = source / "extra" / os.path.normpath((Path(page).parent / re.search(r'href="([^"]+)" download=', glance)[1]))
        assert offered.read_bytes() == list_notebooks()[page].read_bytes()
    assert notebooks.reading_minutes([nbformat.v4.new_markdown_cell("word " * 600), nbformat.v4.new_code_cell("line\n" * 40)]) == 5
    assert [notebooks.say_seconds(seconds) for seconds in (3, 19, 59, 200)] == ["5 seconds", "20 seconds", "1 minute", "4 minutes"]


def test_a_page_says_how_long_it_takes_to_run(laid_out):
    "A page of the paper is timed when it is executed, for the built book."
    source, book = laid_out
    told = {page: read_notebook(source / f"{page}.ipynb").cells[1].source for page in book.pages if not page.startswith("paper/")}
    assert not [page for page, glance in told.items() if not re.search(r"less than \d+ (seconds|minutes?) to run", glance)]
    assert set(build.read_measured()) == set(told)


def test_long_outputs_are_cut():
    long = nbformat.v4.new_output("execute_result", {"text/plain": "\n".join(map(str, range(500)))})
    cut = notebooks.cut_output(long).data["text/plain"].splitlines()
    assert len(cut) == notebooks.MOST_LINES + 1 and cut[-1].startswith("... 440 more lines")


@pytest.mark.parametrize("path", METHOD)
def test_a_notebook_of_the_method_asks_three_questions_that_cells_answer(path):
    cells = read_notebook(path).cells
    answers = [place for place, cell in enumerate(cells) if "answer" in cell.metadata.get("tags", ())]
    assert [cells[place - 1].source.splitlines()[-1][:5] for place in answers] == ["**1.*", "**2.*", "**3.*"]
    assert "## Predict, then unfold" in cells[answers[0] - 1].source
    assert all("assert" in cells[place].source or "expect_fail" in cells[place].source for place in answers)
    assert all(cells[place].outputs for place in answers)


def test_an_answer_is_folded(laid_out):
    cells = read_notebook(laid_out[0] / "1_method" / "18_projection.ipynb").cells
    folded = [cell for cell in cells if "answer" in cell.get("metadata", {}).get("tags", ())]
    assert len(folded) == 3 and all("hide-cell" in cell.metadata["tags"] for cell in folded)


def test_a_page_loses_its_indentation_and_nothing_that_is_read(tmp_path):
    code, script = "<pre>def f():\n\n    return 1\n</pre>", "<script>\n    let text = `a\n  b`;\n</script>"
    (tmp_path / "page.html").write_text(f"<p>\n    one\n      <b>two</b> </p>\n\n{code}\n  {script}  \n<p>three</p>", encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1\n\n    # é", id="x")])
    nbformat.write(notebook, tmp_path / "x.ipynb")
    size = (tmp_path / "x.ipynb").stat().st_size
    (tmp_path / "rows.csv").write_text("key\n1\n")
    (tmp_path / "link.html").write_text('<a href="rows.csv">rows.csv</a> <code>"rows.csv"</code>')
    build.shrink(tmp_path)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == f"<p>\none\n<b>two</b> </p>\n{code}\n{script}\n<p>three</p>"
    assert (tmp_path / "link.html").read_text() == '<a href="rows.csv.xz">rows.csv</a> <code>"rows.csv"</code>'
    assert pd.read_csv(tmp_path / "rows.csv.xz")["key"].tolist() == [1] and not (tmp_path / "rows.csv").exists()
    assert nbformat.read(tmp_path / "x.ipynb", as_version=4) == notebook and (tmp_path / "x.ipynb").stat().st_size < size


def test_the_curves_are_the_rows(tmp_path):
    assert radius.write_curves(tmp_path / "curves.js") > 3
    curves = json.loads((tmp_path / "curves.js").read_text(encoding="utf-8").removeprefix("window.CURVES = ").rstrip().rstrip(";"))
    assert len({json.dumps(curve["choices"], sort_keys=True) for curve in curves}) == len(curves)
    tables = {file: pd.read_csv(TOP / file, low_memory=False).set_index("key") for file in {curve["file"] for curve in curves}}
    for curve in curves:
        table = tables[curve["file"]]
        for point in curve["points"]:
            rows = table.loc[[row[0] for row in point["rows"]]]
            assert rows["seed"].is_unique and rows["radius"].nunique() == 1
            for name, column in (("A_M", "modified_accuracy"), ("A_F", "unmodified_accuracy"), ("mean", "average_accuracy")):
                assert point[name] == pytest.approx(rows[column].mean(), abs=0.006)
                if len(rows) > 1:
                    assert point[f"{name}_se"] == pytest.approx(rows[column].std(ddof=1) / len(rows) ** 0.5, abs=0.006)
    printed = {(one["where"], one["radius"], one["A_M"], one["A_F"]) for curve in curves for one in curve["paper"]}
    assert {("Table 3", "none", 82.5, 1.12), ("Table 6 caption", "0.002", 58.13, 23.51)} <= printed


def test_an_equation_has_one_place(laid_out, texts):
    _, book = laid_out
    for number, equation in book.equations.items():
        assert [path.with_suffix("").as_posix() for path, text in texts.items() if f"(eq-{number})=" in text] == [equation.page]


def test_the_workflow_builds_as_one_does_by_hand():
    assert "make book" in (TOP / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    assert re.search(r"^book: ", (TOP / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "_site/" in (TOP / ".gitignore").read_text(encoding="utf-8").splitlines()


# The built site


class Page(HTMLParser):
    "What a page has: addresses, anchors, headings."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.anchors, self.headings = [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors += [attrs["id"]] if attrs.get("id") else []
        self.headings += tag == "h1"
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("script", "img", "iframe") and attrs.get("src"):
            self.loaded.append(attrs["src"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(attrs["href"])


@pytest.fixture(scope="module")
def site(store):
    "The book, built once for tests in whichever process; a warning fails it."
    for package in ("sphinx", "myst_nb", "furo", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(package, reason="the book's packages are not installed; make book installs them")
    folder = store / "book"
    with exclusively(store / "book.lock"):
        if not (folder / "site").is_dir():
            build.build(folder / "site", folder / "work", jobs=2)
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site): Page(path) for path in sorted(site.rglob("*.html")) if path.name != "report.html"}


@pytest.mark.slow
def test_no_link_of_the_site_is_dead(site, pages):
    dead = []
    for path, page in pages.items():
        for target in page.links + page.loaded:
            address, _, anchor = unquote(target).partition("#")
            where = Path(os.path.normpath(path.parent / address.partition("?")[0])) if address else path
            if re.match(r"\w+:", target):
                continue
            if not (site / where).is_file() or anchor and where in pages and where.name not in ("radius.html",) and anchor not in pages[where].anchors:
                dead.append(f"{path}: {target}")
    assert not dead


@pytest.mark.slow
def test_the_site_needs_no_network(site, pages):
    assert not [(path, address) for path, page in pages.items() for address in page.loaded if re.match(r"(https?:)?//", address)]
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_a_report_shows_the_pictures_that_lie_beside_it(site):
    for scale in ("synthetic", "small", "minilm", "tiny"):
        report = site / "figures" / scale / "report.html"
        shown = re.findall(r'<img[^>]* src="([^"]*)"', report.read_text(encoding="utf-8"))
        assert shown and all((report.parent / name).is_file() for name in shown)


@pytest.mark.slow
def test_the_site_is_small(site, pages):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) <= 20e6
    assert max((site / path).stat().st_size for path in pages) <= 400e3


@pytest.mark.slow
def test_a_page_has_one_title(pages):
    assert not [path for path, page in pages.items() if page.headings != 1 and path.name not in ("genindex.html", "search.html", "py-modindex.html")]


@pytest.mark.slow
def test_every_public_name_has_one_anchor(pages):
    anchors = [anchor for page in pages.values() for anchor in page.anchors]
    for definition in find_definitions({page: read_notebook(path) for page, path in list_notebooks().items()}):
        assert anchors.count(definition.full_name) == 1, definition.full_name


@pytest.mark.slow
def test_a_link_says_what_its_name_does(site):
    told = 'title="Weights that differ from their center by at most radius, each (Eq. 9)."'
    for page in ("1_method/18_projection", "1_method/19_projected_adam", "glossary"):
        assert told in (site / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_figure_is_in_the_gallery_and_its_notebook_was_executed(site, pages):
    shown = {Path(address).name for address in pages[Path("gallery.html")].links if address.endswith(".svg")}
    assert {path.name for path in (FIGURES / "synthetic").glob("figure_*.svg")} <= shown
    assert "_images/" in "".join(pages[Path("paper/figure_1.html")].loaded)
    assert "to run on the committed rows" in (site / "paper" / "figure_1.html").read_text(encoding="utf-8")


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HARNESS = """<!doctype html><iframe id="page" width="{width}" height="900" src="{page}"></iframe><pre id="told"></pre>
<script>page.onload = () => setTimeout(() => {{ const view = page.contentWindow, seen = page.contentDocument;
told.textContent = JSON.stringify((() => {{ {script} }})()); }}, 3000);</script>"""


@pytest.fixture(scope="module")
def served(site):
    "The address, on this machine, of the folder that the site is in."
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site.parent))
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def browse(address: str) -> str:
    "The page as the browser has it after its scripts have run; an error on its console fails the test."
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=15000", "--window-size=1400,1000"]
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert not re.search(r"CONSOLE.*(error|failed|refused)", done.stderr, flags=re.IGNORECASE), done.stderr
    return done.stdout


def look(site: Path, served: str, page: str, script: str, width: int = 1400):
    "What a script finds on a page that is as wide as said."
    harness = site.parent / f"harness-{os.getpid()}.html"  # beside the site: other processes look at it, too
    harness.write_text(HARNESS.format(page=f"site/{page}", script=script, width=width), encoding="utf-8")
    return json.loads(re.search(r'<pre id="told">(.+?)</pre>', browse(f"{served}/{harness.name}"), flags=re.DOTALL)[1])


@pytest.mark.slow
@pytest.mark.parametrize("page", ["1_method/18_projection", "1_method/20_editor", "4_memories/00_knn_lm", "equations", "glossary"])
def test_formulas_are_rendered_from_a_file_without_a_server(site, page):
    text = browse((site / f"{page}.html").as_uri())
    formulas = (site / f"{page}.html").read_text(encoding="utf-8").count('class="math notranslate')
    assert text.count("<mjx-container") == formulas > 0
    assert not re.search(r'<g [^>]*data-mml-node="merror"|data-mjx-error=', text)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["file", "http"])
def test_search_finds_a_name(site, served, over):
    address = (site / "search.html").as_uri() if over == "file" else f"{served}/site/search.html"
    found = re.findall(r'<li class="kind-\w+">.*?<a href="([^"]+)"', browse(f"{address}?q=LinfBall"), flags=re.DOTALL)
    assert any("api/projection.html" in target for target in found)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_the_slider_moves_the_point_and_the_address(site, served, width):
    script = """const slider = seen.getElementById("radius-slider"), where = () => {
      const point = seen.getElementById("radius-point");
      return [point.getAttribute("cx"), point.getAttribute("cy"), seen.getElementById("radius-value").textContent, view.location.hash];
    };
    const told = [where()];
    slider.value = slider.max; slider.dispatchEvent(new view.Event("input")); told.push(where());
    slider.value = "0"; slider.dispatchEvent(new view.Event("input")); told.push(where());
    return told;"""
    chosen, loosest, tightest = look(site, served, "radius.html", script, width)
    assert len({tuple(place[:2]) for place in (chosen, loosest, tightest)}) == 3
    assert loosest[2] == "radius δ: none" and loosest[3].endswith("radius=none")
    assert re.search(r"radius=0\.\d+$", tightest[3])
    again = look(site, served, f"radius.html{loosest[3]}", "return seen.getElementById('radius-value').textContent;", width)
    assert again == "radius δ: none"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index", "1_method/18_projection", "api/projection", "gallery", "radius", "paper/table_2"])
def test_a_page_fits_a_phone_and_has_a_dark_side(site, served, page):
    script = """const color = () => view.getComputedStyle(seen.body).backgroundColor, told = [seen.documentElement.scrollWidth];
    for (const theme of ["light", "dark"]) { seen.body.dataset.theme = theme; told.push(color()); }
    return [...told, seen.body.innerText.trim().slice(0, 20)];"""
    width, light, dark, text = look(site, served, f"{page}.html", script, 390)
    assert width <= 390 and light != dark
    assert not text.startswith("{")  # what a template would leave
