"""Where the project defines its public names, its notebooks and its equations."""
import ast
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

TOP = Path(__file__).parents[2]
NBS, PACKAGE, FIGURES = TOP / "nbs", TOP / "modmem", TOP / "figures"
KINDS = {ast.FunctionDef: "function", ast.ClassDef: "class", ast.Assign: "data", ast.AnnAssign: "data"}


@dataclass(frozen=True)
class Definition:
    "A public name and the notebook cell that defines it."
    name: str
    module: str
    kind: str  # function, class or data
    page: str  # of the book: the notebook's path in nbs, without suffix
    cell: str  # id of the cell
    about: str  # its docstring's first line

    @property
    def full_name(self) -> str:
        return f"modmem.{self.module}.{self.name}"


@dataclass(frozen=True)
class Equation:
    "An equation with a number of the paper."
    number: str
    tex: str
    page: str


def list_notebooks() -> dict[str, Path]:  # page -> file
    "List all notebooks, in the order of their names."
    paths = (path for path in sorted(NBS.glob("**/*.ipynb")) if not any(part[0] in "._" for part in path.relative_to(NBS).parts))
    return {path.relative_to(NBS).with_suffix("").as_posix(): path for path in paths}


def read_notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def read_module(notebook: nbformat.NotebookNode) -> str | None:
    "Name the module that a notebook exports to."
    found = re.search(r"^#\|\s*default_exp (\w+)", "\n".join(cell.source for cell in notebook.cells), flags=re.MULTILINE)
    return found and found[1]


def is_exported(cell: nbformat.NotebookNode) -> bool:
    "Tell whether a cell's code goes into the package."
    return cell.cell_type == "code" and re.match(r"#\|\s*exports?\b", cell.source) is not None


def _names(node: ast.stmt) -> list[str]:
    "Name what a statement at the top of a module defines."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else ()
    return [target.id for target in targets if isinstance(target, ast.Name)] or [getattr(node, "name", "")]


def _about(node: ast.stmt) -> str:
    "Read the first line of a definition's docstring."
    documented = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)
    return documented.splitlines()[0] if documented else ""


def find_definitions(notebooks: dict[str, nbformat.NotebookNode]) -> list[Definition]:
    "Find all names that modules list in `__all__`, in the order of the cells that define them."
    found = []
    for page, notebook in notebooks.items():
        if not (module := read_module(notebook)):
            continue
        body = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")).body
        public = next(ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign) and _names(node) == ["__all__"])
        for cell in filter(is_exported, notebook.cells):
            for node in (node for node in ast.parse(cell.source).body if type(node) in KINDS):
                found += [Definition(name, module, KINDS[type(node)], page, cell.id, _about(node)) for name in _names(node) if name in public]
    return list({definition.full_name: definition for definition in found}.values())


def find_equations(notebooks: dict[str, nbformat.NotebookNode]) -> dict[str, Equation]:  # by number, each where it stands last
    "Find the numbered equations; one that stands in several notebooks belongs to the last, which explains it."
    found = {}
    for page, notebook in notebooks.items():
        for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
            for tex in re.findall(r"^\$\$(.+?)\$\$$", cell.source, flags=re.MULTILINE | re.DOTALL):
                for number in re.findall(r"\\tag\{(\w+)\}", tex):
                    found[number] = Equation(number, tex.strip(), page)
    return dict(sorted(found.items(), key=lambda item: int(item[0])))
