"""How the library notebooks read, in numbers: `python tests/notebook_metrics.py` prints a table, a line a notebook and a part."""
import ast
import re
from pathlib import Path
from statistics import median

import nbformat

NBS = Path(__file__).parents[1] / "nbs"
LIBRARY = sorted(NBS.glob("[0-9]_*/[0-9][0-9]_*.ipynb"))
REACH = 3  # cells after the definition in which a public name should be used


def is_exported(cell) -> bool:
    "Tell whether a cell's code goes into the package."
    return cell.cell_type == "code" and re.match(r"#\|\s*exports?\b", cell.source) is not None


def is_lesson(cell) -> bool:
    "Tell whether a cell shows something: code that is neither exported, nor hidden, nor a mere directive or import."
    if cell.cell_type != "code" or is_exported(cell) or re.match(r"#\|\s*(hide|default_exp)\b", cell.source):
        return False
    return any(not isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell.source).body)


def code_lines(source: str) -> int:
    "Count the lines that hold code."
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def public_names(cell) -> list[str]:
    "Name what an exported cell adds to the module's `__all__`."
    names = []
    for node in ast.parse(cell.source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
    return [name for name in names if not name.startswith("_")]


def definition_lengths(cell) -> list[int]:
    "Count the lines of each function and class of an exported cell."
    return [node.end_lineno - node.lineno + 1 for node in ast.parse(cell.source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def long_cells(path: Path, most: int = 30) -> list[tuple[str, int]]:
    "List the exported cells with more lines of code than `most`, with their lengths."
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if is_exported(cell)]
    return [(cell.id, code_lines(cell.source)) for cell in cells if code_lines(cell.source) > most]


def measure(path: Path) -> dict:
    "Measure one notebook: names and those shown, lines exported and demonstrated, lengths of definitions, long cells."
    cells = nbformat.read(path, as_version=4).cells
    found = {"names": [], "shown": [], "exported": 0, "demonstrated": 0, "lengths": [], "long": len(long_cells(path))}
    for place, cell in enumerate(cells):
        if is_exported(cell):
            near = "\n".join(one.source for one in cells[place + 1 : place + 1 + REACH] if is_lesson(one))
            found["exported"] += code_lines(cell.source)
            found["names"] += public_names(cell)
            found["shown"] += [name for name in public_names(cell) if re.search(rf"\b{name}\b", near)]
            found["lengths"] += definition_lengths(cell)
        elif is_lesson(cell):
            found["demonstrated"] += code_lines(cell.source)
    return found


def add_up(measured: list[dict]) -> dict:
    "Put the measures of several notebooks together."
    return {name: sum((one[name] for one in measured), type(measured[0][name])()) for name in measured[0]}


def describe(name: str, one: dict) -> str:
    "Write a line of the table."
    shown = 100 * len(one["shown"]) / max(1, len(one["names"]))
    demonstration = 100 * one["demonstrated"] / max(1, one["exported"] + one["demonstrated"])
    return f"{name:<36}{one['exported']:>9}{shown:>11.0f} %{demonstration:>11.0f} %{median(one['lengths'] or [0]):>9.1f}{one['long']:>7}"


if __name__ == "__main__":
    measured = {path: measure(path) for path in LIBRARY}
    print(f"{'notebook':<36}{'exported':>9}{'shown':>13}{'lessons':>13}{'median':>9}{'long':>7}")
    for part in sorted({path.parent.name for path in measured}):
        inside = {path.stem: one for path, one in measured.items() if path.parent.name == part}
        print("\n".join(describe(f"  {name}", one) for name, one in inside.items()))
        print(describe(part, add_up(list(inside.values()))))
    print(describe("all", add_up(list(measured.values()))))
