"""The pages that are not notebooks: parts, the package's names, the gallery, results, equations, reports."""
import ast
import json
import re
from pathlib import Path

from names import FIGURES, NBS, TOP, Definition, read_notebook
from notebooks import Book, place_of_file, rewrite

OWN_PAGES = Path(__file__).parent / "pages"
SCALES = {"synthetic": "the synthetic world", "small": "real T-REx", "minilm": "real T-REx, MiniLM on a CPU", "tiny": "real T-REx on a CPU", "benchmarks": "costs"}


def title_of(path: Path) -> tuple[str, str]:
    "Read a notebook's title, and the line under it."
    first = read_notebook(path).cells[0].source
    subtitle = re.search(r"^> (.+)$", first, flags=re.MULTILINE)
    return re.search(r"^# (.+)$", first, flags=re.MULTILINE)[1], subtitle[1] if subtitle else ""


def toctree(pages: list[str], hidden: bool = True) -> str:
    return "\n".join(["```{toctree}", *([":hidden:"] if hidden else []), ":maxdepth: 1", "", *pages, "```"])


def list_parts(pages: list[str], order: list[str]) -> dict[str, list[str]]:  # folder -> pages
    "Put notebooks into their parts; a paper notebook stands where `order` has it."
    parts: dict[str, list[str]] = {}
    for page in pages:
        if "/" in page:
            parts.setdefault(page.split("/")[0], []).append(page)
    for inside in parts.values():
        inside.sort(key=lambda page: (order.index(Path(page).name) if Path(page).name in order and page.startswith("paper/") else len(order), page))
    return parts


def describe_parts() -> dict[str, str]:
    "What the index says of each part."
    text = "\n".join(cell.source for cell in read_notebook(NBS / "index.ipynb").cells)
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))


def part_page(part: str, pages: list[str], about: str, paths: dict[str, Path], times: dict[str, str], book: Book) -> str:
    "Write the page of a part: its notebooks in order."
    lines = []
    for page in pages:
        title, subtitle = title_of(paths[page])
        text = subtitle.replace("|", "\\|")
        lines.append(f"| [{title}]({Path(page).name}.ipynb) | {rewrite(text, f'{part}/index', NBS / part, book)} | {times[page]} |")
    table = "\n".join(["| notebook | | to read |", "|---|---|---|", *lines])
    name = re.sub(r"^\d_", "", part)
    heading = f"Part {part[0]}: {name}" if part[0].isdigit() else name.capitalize()
    about = about.replace("](", "](../")  # the index stands one folder above
    return f"# {heading}\n\n{about[:1].upper()}{about[1:]}.\n\n{table}\n\n{toctree([Path(page).name for page in pages])}\n"


def module_page(module: str, definitions: list[Definition], about: str, book: Book) -> str:
    "Write the page of a module: each of its public names, with the cell that defines it."
    page, full = definitions[0].page, f"modmem.{module}"
    entries = []
    for one in definitions:
        options = ["   :members:"] if one.kind == "class" else ["   :no-value:"] if one.kind == "data" else []
        entries.append("\n".join([f".. auto{one.kind}:: {one.full_name}", *options]))
    rst = "\n\n".join([f".. py:module:: {full}", *entries])
    source = f"../{page}.ipynb"
    about = rewrite(about, f"api/{module}", NBS / "api", book)
    return f"# {full}\n\n{about}. Made by [{Path(page).name}]({source}), which explains it.\n\n```{{eval-rst}}\n{rst}\n```\n"


def api_index(modules: dict[str, tuple[str, list[Definition]]], parts: list[str], book: Book) -> str:
    "Write the list of all modules and their public names, part by part."
    lines = []
    for part in parts:
        inside = {module: known for module, known in modules.items() if known[1][0].page.startswith(f"{part}/")}
        if inside:
            lines += [f"\n## {re.sub(r'^[0-9]_', '', part).capitalize()}\n", "| module | what it is | its names |", "|---|---|---|"]
        for module, (about, definitions) in inside.items():
            names = ", ".join(f"{{py:obj}}`{one.name} <{one.full_name}>`" for one in definitions)
            about = rewrite(about, "api/index", NBS / "api", book)
            lines.append(f"| [{module}]({module}.md) | {about} | {names} |")
    text = "All public names, by module. Each entry lists the parameters with what they mean, and leads to the notebook cell that defines it."
    return "\n".join(["# Reference\n", text, *lines, "", toctree(list(modules))])


def read_docstring(module: str) -> str:
    return ast.get_docstring(ast.parse((TOP / "modmem" / f"{module}.py").read_text(encoding="utf-8"))) or ""


def equations_page(book: Book) -> str:
    "Write the list of the paper's numbered equations, and where each is explained."
    lines = ["# Equations", "", "The equations of the paper that the code names, by their numbers in it.", ""]
    for one in book.equations.values():
        title, _ = title_of(NBS / f"{one.page}.ipynb")
        lines += [f"$$\n{one.tex}\n$$", "", f"Explained in [{title}]({one.page}.ipynb#eq-{one.number}).", ""]
    return "\n".join(lines)


def result_page(path: Path, book: Book) -> str:
    "Write the page of an artefact: its text, with its files and its notebook above."
    page = path.relative_to(TOP).with_suffix("").as_posix()
    text = path.read_text(encoding="utf-8")
    links = file_links(path.parent, path.stem, page, book)
    notebook = f"paper/{path.stem}"
    if notebook in book.pages:
        links.insert(0, f"[notebook](../../{notebook}.ipynb)")
    heading, _, rest = rewrite(text, page, path.parent, book).partition("\n")
    glance = f"\n\n:::{{container}} glance\n{' · '.join(links)}\n:::\n" if links else "\n"
    return f"---\norphan: true\n---\n{heading}{glance}{rest}"


def file_links(folder: Path, stem: str, page: str, book: Book) -> list[str]:
    "Link the files of an artefact from a page."
    up = "/".join([".."] * page.count("/")) or "."
    found = []
    for suffix in (".csv", ".json", ".svg"):
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            book.files.add(path)
            found.append(f'<a href="{up}/{place_of_file(path)}">{suffix[1:]}</a>')
    return found


def gallery_card(path: Path, book: Book) -> str:
    "Write the card of an artefact: its picture, its notebook, its files."
    folder, stem = path.parent, path.stem
    picture = next((one for one in (folder / f"{stem}.svg", folder / f"{stem}_forest.svg") if one.is_file()), None)
    title = path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ").strip()
    page = path.relative_to(TOP).with_suffix("").as_posix()
    links = [f"[result]({page}.md)"] + ([f"[notebook](paper/{stem}.ipynb)"] if f"paper/{stem}" in book.pages else [])
    links += [f"[notebook](guides/{stem}.ipynb)"] if f"guides/{stem}" in book.pages else []
    links += file_links(folder, stem, "gallery", book)
    options = [":class-card: artefact"]
    if picture:
        book.files.add(picture)
        image = f'<a href="{page}.html"><img src="{place_of_file(picture)}" alt="{title}" loading="lazy"></a>\n\n'
    else:
        image = ""
    return "\n".join([f":::{{grid-item-card}} {title}", *options, "", f"{image}{' · '.join(links)}", ":::"])


def gallery_page(book: Book) -> str:
    "Write the gallery of all artefacts of all scales."
    text = [
        "# Gallery", "",
        "Every table and figure that ships with the project: the result beside the paper's numbers, the notebook that made it, and its files. "
        "Notebooks are shown as they were executed on the rows of the synthetic world; the same notebooks, with other parameters, made the results of real facts.", "",
    ]  # fmt: skip
    for scale, what in SCALES.items():
        paths = [path for path in sorted((FIGURES / scale).glob("*.md")) if path.stem != "README"]
        if not paths:
            continue
        paths.sort(key=lambda path: (not path.stem.startswith("figure"), not path.stem.startswith("table"), path.stem))
        text += [f"## {what[0].upper()}{what[1:]}", ""]
        rows = FIGURES / scale / "rows.csv"
        if rows.is_file():
            book.files.add(rows)
            text += [f'All rows behind these: <a href="{place_of_file(rows)}">rows.csv</a>.', ""]
        report = FIGURES / scale / "report.html"
        if report.is_file():
            book.files.add(report)
            text += [f'All of these on one page, beside the paper\'s numbers: <a href="{place_of_file(report)}">report</a>.', ""]
        text += ["::::{grid} 1 2 3 3", ":gutter: 2", "", *(gallery_card(path, book) for path in paths), "::::", ""]
    return "\n".join(text)


def report_page(book: Book) -> str:
    "Write the page that shows the reports inside the book."
    lines = ["# Reports", "", "Each is one page, in the project one file that opens without any other: all artefacts of a scale, the paper's numbers beside ours, and the claims with their verdicts.", ""]
    for scale, what in SCALES.items():
        path = FIGURES / scale / "report.html"
        if path.is_file():
            book.files.update([path, *path.parent.glob("*.svg")])
            place = place_of_file(path)
            lines += [f"## {what[0].upper()}{what[1:]}", "", f'<a href="{place}">Open alone</a>', "", f'<iframe class="report" src="{place}" title="Report: {what}" loading="lazy"></iframe>', ""]
    return "\n".join(lines)


def first_page(notebook, parts: dict[str, list[str]]):
    "Put the book's three doors under the title of the index, and the tree of pages at its end."
    cells = notebook.cells
    cells[1].source += "\n\n" + (OWN_PAGES / "doors.md").read_text(encoding="utf-8")
    trees = [
        "```{toctree}\n:hidden:\n:caption: Read\n\n" + "\n".join(f"{part}/index" for part in parts if part[0].isdigit() or part == "guides") + "\n```",
        "```{toctree}\n:hidden:\n:caption: Results\n\ngallery\nradius\npaper/index\nreports\nfigures/README\nfigures/published/README\n```",
        "```{toctree}\n:hidden:\n:caption: Look up\n\napi/index\nequations\nglossary\n```",
    ]
    cells.append(type(cells[0])(cell_type="markdown", id="tree", source="\n\n".join(trees), metadata={}))
    return notebook
