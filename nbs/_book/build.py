"""Build the book: execute the paper's notebooks on committed rows, lay out the pages, and let Sphinx write _site."""
import argparse
import csv
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from urllib.parse import unquote

import jinja2
import nbformat
from names import FIGURES, NBS, TOP, find_definitions, find_equations, list_notebooks, read_notebook
from notebooks import Book, make_page, place_of_file, reading_minutes
from pages import (
    OWN_PAGES, api_index, describe_parts, equations_page, first_page, gallery_page, list_parts, module_page, part_page, read_docstring, report_page, result_page,
)  # fmt: skip
from radius import write_curves

HERE = Path(__file__).parent
EXECUTED = "synthetic"  # the scale whose rows the paper's notebooks are shown on
MATHJAX = ("sphinx-mathjax-offline", "tex-svg.js", "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882")  # of MathJax 3.2.2


def run_command(*arguments: str, folder: Path) -> str:
    "Run the project's command with this Python."
    command = [sys.executable, "-c", "from modmem.cli import main; main()", *arguments]
    path = os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")]))
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # figures are shown, whatever the caller's backend
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings).stdout


def execute(folder: Path, jobs: int) -> dict[str, Path]:  # page -> executed copy
    "Execute the paper's notebooks whose rows are all committed; those that did not change since are left as they are."
    folder.mkdir(parents=True, exist_ok=True)
    rows = FIGURES / EXECUTED / "rows.csv"
    where = ["--full", "--rows", str(rows), "--output", str(folder / "figures"), "--store", str(folder / "store")]
    plan = json.loads(run_command("reproduce", *where, "--list", "--json", folder=folder))
    ready = [one["artefact"] for one in plan["artefacts"] if one["rows"] == one["there"]]
    for one in plan["artefacts"]:
        if one["artefact"] not in ready:
            print(f"{one['artefact']}: {one['rows'] - one['there']} of its rows are not committed; shown as it is stored")
    run_command("reproduce", *ready, *where, "--jobs", str(jobs), folder=folder)
    return {f"paper/{name}": folder / "_runs" / f"{name}.ipynb" for name in ready}


def read_measured() -> dict[str, float]:  # page -> seconds
    "How long notebooks took to run when they were last measured."
    with (HERE / "seconds.csv").open(encoding="utf-8") as file:
        return {line["notebook"]: float(line["seconds"]) for line in csv.DictReader(file)}


class Layout:
    "A folder of Sphinx's source, in which only what changed is written, so that only that is built again."

    def __init__(self, folder: Path):
        self.folder, self.written = folder, set()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        self.written.add(path)

    def copy(self, name: str, source: Path) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != source.read_bytes():
            shutil.copyfile(source, path)
        self.written.add(path)

    def tidy(self) -> list[Path]:  # what was removed
        "Remove what an earlier layout has left."
        left = [path for path in self.folder.rglob("*") if path.is_file() and path not in self.written]
        for path in left:
            path.unlink()
        return left


def lay_out(folder: Path, executed: dict[str, Path]) -> Book:
    "Write the source of all pages, the files that they link, and the scripts."
    paths = list_notebooks()
    notebooks = {page: read_notebook(path) for page, path in paths.items()}
    book = Book(find_definitions(notebooks), find_equations(notebooks), list(paths))
    seconds = read_measured() | {page: read_notebook(path).metadata["papermill"]["duration"] for page, path in executed.items()}
    source = Layout(folder / "source")
    order = list(dict.fromkeys(Path(page).name for page in executed))
    parts, about = list_parts(list(paths), order), describe_parts()
    minutes = {page: f"{reading_minutes(notebook.cells)} min" for page, notebook in notebooks.items()}
    for page, path in paths.items():
        shown = read_notebook(executed[page]) if page in executed else notebooks[page]
        made = make_page(page, path, shown, seconds.get(page), book)
        made = first_page(made, parts) if page == "index" else made
        source.write(f"{page}.ipynb", nbformat.writes(made))
    for part, inside in parts.items():
        source.write(f"{part}/index.md", part_page(part, inside, about.get(part, part), paths, minutes, book))
    modules = {}
    for definition in book.definitions:
        modules.setdefault(definition.module, (read_docstring(definition.module), []))[1].append(definition)
    for module, (docstring, definitions) in modules.items():
        source.write(f"api/{module}.md", module_page(module, definitions, docstring, book))
    source.write("api/index.md", api_index(modules, list(parts), book))
    for path in sorted(FIGURES.rglob("*.md")):
        source.write(path.relative_to(TOP).as_posix(), result_page(path, book))
    source.write("equations.md", equations_page(book))
    source.write("gallery.md", gallery_page(book))
    source.write("reports.md", report_page(book))
    for path in sorted(OWN_PAGES.glob("*.md")):
        if path.stem != "doors":
            source.write(path.name, path.read_text(encoding="utf-8"))
    for path in sorted(book.files):
        source.copy(f"extra/{place_of_file(path)}", path)
    if source.tidy():  # Sphinx would keep the pages of what is gone
        shutil.rmtree(folder / "html", ignore_errors=True)
    return book


def find_mathjax() -> Path:
    "Find MathJax in the package that carries it, and check that it is what it should be."
    package, name, digest = MATHJAX
    path = next(Path(file.locate()) for file in files(package) if file.name == name)
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise SystemExit(f"{package} carries another {name} than MathJax 3.2.2's")
    return path


def write_icons(target: Path) -> None:
    "Write the theme's drawings as a script, which each page loads instead of repeating them."
    partial = next(Path(file.locate()) for file in files("furo") if file.match("partials/icons.html"))
    drawings = jinja2.Template(partial.read_text(encoding="utf-8")).render()
    target.write_text(f"document.currentScript.insertAdjacentHTML('afterend', {json.dumps(drawings)});\n", encoding="utf-8")


def shrink(site: Path) -> None:
    "Leave out what no reader sees: the indentation of pages, but for what stands as it is written, and of the notebooks to download; a report's own pictures, which lie beside it, too; pack the rows."
    for path in site.rglob("report.html"):
        drawn = {" ".join(one.read_text(encoding="utf-8").split()): one.name for one in path.parent.glob("*.svg")}
        text = re.sub(r'"data:image/svg\+xml,([^"]*)"', lambda match: f'"{drawn[unquote(match[1])]}"', path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    for path in site.rglob("rows.csv"):
        path.with_name("rows.csv.xz").write_bytes(lzma.compress(path.read_bytes()))
        path.unlink()
    for path in site.rglob("*.html"):
        parts = re.split(r"(<(?:pre|script|style|textarea)\b.*?</(?:pre|script|style|textarea)>)", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        parts[::2] = [re.sub(r"\s*\n\s*", "\n", part) for part in parts[::2]]
        path.write_text(re.sub(r'(href="[^"]*rows\.csv)"', r'\1.xz"', "".join(parts)), encoding="utf-8")
    for path in site.rglob("*.ipynb"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def build(site: Path, work: Path, jobs: int) -> None:
    "Build the whole book."
    executed = execute(work / "executed", jobs)
    lay_out(work, executed)
    Layout(work / "static").copy("tex-svg.js", find_mathjax())
    write_icons(work / "static" / "icons.js")
    write_curves(work / "static" / "curves.js")
    folders = {"BOOK_STATIC": work / "static", "BOOK_EXTRA": work / "source" / "extra", "PYTHONPATH": TOP}
    options = ["-W", "--keep-going", "-q", "-j", str(jobs), "-c", str(HERE), "-d", str(work / "doctrees")]
    options += [] if (work / "html").is_dir() else ["-a"]  # all pages anew, also those whose source did not change
    command = [sys.executable, "-m", "sphinx", *options, str(work / "source"), str(work / "html")]
    if subprocess.run(command, env=os.environ | {name: str(folder) for name, folder in folders.items()}).returncode:
        shutil.rmtree(work / "doctrees", ignore_errors=True)  # or the next build would not warn of pages that did not change
        raise SystemExit("the book is not built: mend what is warned of above")
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(work / "html", site, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv", "*.map", "_sources"))
    shrink(site)
    (site / ".nojekyll").touch()  # or GitHub Pages would leave out what begins with an underscore


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=TOP / "_site", help="where to write the book")
    parser.add_argument("--work", type=Path, default=TOP / "_proc" / "book", help="what is kept from one build to the next")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    build(given.site.resolve(), given.work.resolve(), given.jobs)
