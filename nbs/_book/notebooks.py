"""From a notebook of the repository to a page of the book: plain functions on its cells."""
import ast
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from names import FIGURES, NBS, TOP, Definition, Equation, is_exported, read_module

WORDS_A_MINUTE, LINES_A_MINUTE = 200, 20  # of prose and of code
MOST_LINES, MOST_LETTERS = 60, 12_000  # of an output
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<![`\[\w])`([^`\n]+)`(?![`\]\w])")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", flags=re.MULTILINE | re.DOTALL)


@dataclass
class Book:
    "What all pages know of each other."
    definitions: list[Definition]
    equations: dict[str, Equation]
    pages: list[str]  # of notebooks
    files: set[Path] = field(default_factory=set)  # of the repository, which pages link or show

    def __post_init__(self):
        self.by_name: dict[str, str] = {}  # what stands between backticks -> full name, where there is only one
        names = [definition.name for definition in self.definitions]
        for definition in self.definitions:
            if names.count(definition.name) == 1:
                self.by_name[definition.name] = definition.full_name
            self.by_name[definition.full_name] = self.by_name[f"{definition.module}.{definition.name}"] = definition.full_name
        stems = [Path(page).name for page in self.pages]
        self.by_stem = {stem: page for stem, page in zip(stems, self.pages) if stems.count(stem) == 1 and re.match(r"\d\d_", stem)}
        self.modules = {f"modmem.{definition.module}" for definition in self.definitions}


def outside_code(text: str, change: Callable[[str], str]) -> str:
    "Change what stands outside of fenced blocks."
    parts, last = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[last : block.start()]), block[0]]
        last = block.end()
    return "".join([*parts, change(text[last:])])


def link_names(text: str, page: str, book: Book) -> str:
    "Turn names between backticks into links: public names, modules, and notebooks."
    def link(match: re.Match) -> str:
        name = match[1].removesuffix("()")
        if name in book.by_name:
            return f"{{py:obj}}`{match[1]} <{book.by_name[name]}>`"
        if name in book.modules:
            return f"{{py:mod}}`{name}`"
        if name in book.by_stem:
            return f"[`{name}`]({os.path.relpath(book.by_stem[name], Path(page).parent)}.ipynb)"
        return match[0]

    lines = text.split("\n")
    return "\n".join(line if line.startswith("#") else CODE.sub(link, line) for line in lines)


def link_equations(text: str, page: str, book: Book) -> str:
    "Give each numbered equation an anchor, and turn `Eq. 8` into a link to it."
    def anchor(match: re.Match) -> str:
        number = re.search(r"\\tag\{(\w+)\}", match[0])
        here = number and book.equations[number[1]].page == page
        return f"\n(eq-{number[1]})=\n{match[0]}\n" if here else match[0]

    def link(match: re.Match) -> str:
        return f"[{match[0]}](#eq-{match[1]})" if match[1] in book.equations else match[0]

    text = re.sub(r"(?<!\[)\bEq\. (\d+)\b(?![^\[\n]*\]\()", link, text)
    return re.sub(r"^\$\$.+?\$\$$", anchor, text, flags=re.MULTILINE | re.DOTALL)


def place_of_file(path: Path) -> str:
    "Where a file of the repository lies in the site, when it is no page."
    return path.relative_to(TOP).as_posix() if FIGURES in path.parents else f"files/{path.relative_to(TOP).as_posix()}"


def as_drawn(path: Path) -> Path:
    "The svg of a picture that is there as png, too: sharper, and often smaller."
    drawn = path.with_suffix(".svg")
    return drawn if path.suffix == ".png" and drawn.is_file() else path


def link_files(text: str, page: str, folder: Path, book: Book) -> str:
    "Let links that leave the notebooks lead to the book's copy of what they name; `folder` is where the text stands."
    def link(match: re.Match) -> str:
        picture, label, target = match.groups()
        address, _, anchor = target.partition("#")
        path = as_drawn(Path(os.path.normpath(folder / address)))
        if not address or re.match(r"\w+:", address) or (NBS in path.parents and NBS in (folder, *folder.parents)):
            return match[0].replace(f"#{anchor}", f"#{anchor.lower()}") if "/" not in anchor and not re.match(r"\w+:", address) else match[0]
        up = os.path.relpath(".", Path(page).parent)
        if NBS in path.parents or (FIGURES in path.parents and path.suffix == ".md"):
            inside = path.relative_to(NBS if NBS in path.parents else TOP)
            return f"[{label}]({up}/{inside.as_posix()}{anchor and '#' + anchor})"
        if path == FIGURES or path.parent == FIGURES and path.is_dir():
            return f"[{label}]({up}/gallery.md)"
        book.files.add(path)
        place = f"{up}/{place_of_file(path)}"
        return f'<img src="{place}" alt="{escape(label)}">' if picture else f'<a href="{place}">{label}</a>'

    text = re.sub(r'<img src="([^"]+)"([^>]*)>', lambda match: _picture(match, page, folder, book), text)
    return LINK.sub(link, text)


def _picture(match: re.Match, page: str, folder: Path, book: Book) -> str:
    path = as_drawn(Path(os.path.normpath(folder / match[1])))
    book.files.add(path)
    return f'<img src="{os.path.relpath(".", Path(page).parent)}/{place_of_file(path)}"{match[2]}>'


def rewrite(text: str, page: str, folder: Path, book: Book) -> str:
    "Make markdown of the repository markdown of the book."
    def change(part: str) -> str:
        return link_equations(link_names(link_files(part, page, folder, book), page, book), page, book)

    return outside_code(text, change)


def is_import(source: str) -> bool:
    "Tell whether code does nothing but import."
    body = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)).body
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def cut_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Cut a long text; the downloaded notebook has it whole."
    def cut(text: str) -> str:
        lines = text.splitlines()
        if len(lines) <= MOST_LINES and len(text) <= MOST_LETTERS:
            return text
        kept = "\n".join(lines[:MOST_LINES])[:MOST_LETTERS]
        return f"{kept}\n... {len(lines) - kept.count(chr(10)) - 1} more lines: run the notebook to see them"

    if "text" in output:
        output.text = cut(output.text)
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = cut(data["text/plain"])
    if len(data.get("text/html", "")) > 2 * MOST_LETTERS:
        del data["text/html"]
    return output


def prepare_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    "Mark a code cell for the book; None for plumbing."
    directives = set(re.findall(r"^#\|\s*(\w+)", cell.source, flags=re.MULTILINE))
    tags = set(cell.metadata.get("tags", ()))
    source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip("\n")
    if "injected-parameters" in tags:
        source = re.sub(r"^places = .*\n?", "", source, flags=re.MULTILINE).strip("\n")
    if "hide" in directives or not source:
        return None
    kinds = {"exported" if is_exported(cell) else "lesson"}
    kinds |= {"remove-input"} if "hide_input" in tags else {"hide-cell"} if "answer" in tags else {"hide-input"} if is_import(source) else set()
    cell.source = source
    cell.outputs = [cut_output(output) for output in cell.outputs if output.get("name") != "stderr" and output.output_type != "error"]
    imports = "imports of the package" if "exported" in kinds else "imports"
    prompt = imports if "hide-input" in kinds else "unfold the answer"
    cell.metadata = nbformat.from_dict({"tags": sorted(tags | kinds), "cell": cell.id, "mystnb": {"code_prompt_show": prompt, "code_prompt_hide": prompt}})
    return cell


def reading_minutes(cells: Iterable[nbformat.NotebookNode]) -> int:
    "Estimate how long a notebook takes to read, from its words and its lines of code."
    cells = list(cells)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
    return max(1, round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def say_seconds(seconds: float) -> str:
    "Say a time as roughly as it is known."
    steps = (5, 10, 20, 30, 60)
    if seconds <= steps[-1]:
        about = next(step for step in steps if seconds <= step)
        return "1 minute" if about == 60 else f"{about} seconds"
    return f"{math.ceil(seconds / 60)} minutes"


def head(page: str, path: Path, notebook: nbformat.NotebookNode, seconds: float | None, book: Book) -> nbformat.NotebookNode:
    "Write the line under a title: how long to read and to run, which module it makes, and the notebook itself."
    minutes = reading_minutes(notebook.cells)
    parts = [f"{minutes} minute{'s' * (minutes > 1)} to read"]
    rows = " on the committed rows" if page.startswith("paper/") else ""
    parts += [f"less than {say_seconds(seconds)} to run{rows}"] if seconds else []
    module = read_module(notebook)
    parts += [f"the module {{py:mod}}`modmem.{module}`"] if module else []
    book.files.add(path)
    place = f"{os.path.relpath('.', Path(page).parent)}/{place_of_file(path)}"
    parts += [f'<a href="{place}" download="{escape(path.name)}">download notebook</a>']
    return new_markdown_cell(":::{container} glance\n" + " · ".join(parts) + "\n:::", id="glance")


def make_page(page: str, path: Path, notebook: nbformat.NotebookNode, seconds: float | None, book: Book) -> nbformat.NotebookNode:
    "Turn a notebook into a page of the book."
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and (cell := prepare_cell(cell)):
            for output in (output for output in cell.outputs if "text/markdown" in output.get("data", {})):
                output.data["text/markdown"] = rewrite(output.data["text/markdown"], page, path.parent, book)
            cells.append(cell)
        elif cell and cell.cell_type == "markdown":
            cell.source = rewrite(cell.source, page, path.parent, book)
            cells.append(cell)
    cells.insert(1, head(page, path, notebook, seconds, book))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)
