"""What Sphinx is told beyond its settings: parameters explained beside signatures, entries that lead to cells, cells with anchors."""
import ast
import hashlib
import inspect
import re
from html import escape
from pathlib import Path

from docutils import nodes
from fastcore.docments import docments
from names import find_definitions, find_equations, list_notebooks, read_notebook
from notebooks import Book

NOTEBOOKS = {page: read_notebook(path) for page, path in list_notebooks().items()}
BOOK = Book(find_definitions(NOTEBOOKS), find_equations(NOTEBOOKS), list(NOTEBOOKS))
APART = "\\ "  # in RST, lets markup touch a word
DEFINED = {definition.full_name: definition for definition in BOOK.definitions}


def label_of(page: str, cell: str) -> str:
    "Name the anchor of a notebook's cell."
    return f"{page}--{cell}".lower()


def to_rst(text: str) -> str:
    "Turn a docstring's text, whose code stands between single backticks, into RST with links."
    def code(match: re.Match) -> str:
        before, text, after = match.groups()
        full_name = BOOK.by_name.get(text.removesuffix("()"))
        literal = f":py:obj:`{text} <{full_name}>`" if full_name else f"``{text}``"
        return APART.join(part for part in (before, literal, after) if part)

    text = re.sub(r"([*_|<>\\\\])(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\\1", text)
    text = re.sub(r"(?P<before>\S?)`([^`]+)`(?P<after>\w?)", code, text)
    return re.sub(r"\bEq\. (\d+)\b", lambda match: f":ref:`Eq. {match[1]} <eq-{match[1]}>`" if match[1] in BOOK.equations else match[0], text)


def list_parameters(obj: object) -> list[str]:
    "List parameters and result with what the source says beside them."
    try:
        found = docments(obj, full=True, returns=True)
    except (TypeError, ValueError, OSError, KeyError, AttributeError):
        return []
    lines = []
    for name, one in found.items():
        text = " ".join((one.docment or "").split())
        if name != "return" and text:
            lines.append(f":param {name}: {to_rst(text)}")
        elif name == "return" and text:
            lines.append(f":returns: {to_rst(text)}")
    return lines


def explain(app, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    "Write an entry: the docstring, the parameters, and where the name is defined."
    text = [] if what == "data" else [to_rst(line) for line in lines]
    if what in ("function", "class", "method"):
        text += ["", *list_parameters(obj), ""]
    if definition := DEFINED.get(name):
        text += ["", f"Defined in :ref:`{Path(definition.page).name} <{label_of(definition.page, definition.cell)}>`.", ""]
    lines[:] = text


def skip(app, what: str, name: str, obj: object, skipped: bool, options: object) -> bool | None:
    "Leave out members without a docstring of their own: fields are among the parameters of their class."
    return True if what == "class" and not (inspect.isroutine(obj) or isinstance(obj, property)) else None


def anchor_cells(app, doctree: nodes.document) -> None:
    "Give each code cell of a notebook an anchor."
    domain, page = app.env.domains.standard_domain, app.env.docname
    for cell in doctree.findall(nodes.container):
        identity = cell.get("cell_metadata", {}).get("cell") if cell.get("nb_element") == "cell_code" else None
        if identity:
            anchor = f"cell-{identity}"
            cell["ids"].append(anchor)
            domain.anonlabels[label_of(page, identity)] = page, anchor


def keep_numbers(app, doctree: nodes.document) -> None:
    r"Begin lines of a numbered formula with `\cr`: because of a `\\`, Sphinx would wrap it in `split`, where no number may stand."
    for formula in doctree.findall(nodes.math_block):
        if r"\tag" in formula.astext():
            formula[:] = [nodes.Text(formula.astext().replace(r"\\", r"\cr "))]


def names_in_code(page: str) -> dict[str, str]:  # name -> full name
    "Find which public names a notebook's code can mean: those that it imports, and those that it defines."
    found = {definition.name: definition.full_name for definition in BOOK.definitions if definition.page == page}
    for cell in (cell for cell in NOTEBOOKS[page].cells if cell.cell_type == "code"):
        for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE))):
            if isinstance(node, ast.ImportFrom) and node.module:
                full_names = {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
                found |= {name: full_name for name, full_name in full_names.items() if full_name in DEFINED}
    return found


def link_code(app, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    "Link public names in a notebook's code; not attributes and names of arguments, which are other things."
    if page not in NOTEBOOKS:
        return
    known = names_in_code(page)

    def link(match: re.Match) -> str:
        definition = DEFINED.get(known.get(match[2], ""))
        if not definition:
            return match[0]
        place = app.builder.get_relative_uri(page, f"api/{definition.module}")
        return f'<a class="name" href="{place}#{definition.full_name}" title="{definition.full_name}">{match[0]}</a>'

    context["body"] = re.sub(r'(?<!<span class="o">\.</span>)<span class="(n|nc|nf)">(\w+)</span>(?!<span class="o">=</span>)', link, context["body"])


def tell_on_hover(app, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    "Let a link to a name say what it does, not only where it stands."
    def told(match: re.Match) -> str:
        definition = DEFINED.get(match[1])
        return f'title="{escape(definition.about.replace("`", ""))}"' if definition and definition.about else match[0]

    if "body" in context:
        context["body"] = re.sub(r'title="(modmem\.[\w.]+)"', told, context["body"])


def lighten(app, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    "Leave out marks that no colour needs, of names, operators and brackets: a fifth of the site."
    if "body" in context:
        context["body"] = re.sub(r'<span class="[nopw]">([^<]*)</span>', r"\1", context["body"])


def fold_tree(app, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    "Leave the pages of other parts out of a page's tree: a part's page lists them, and the whole tree on every page would be a quarter of the site."
    other = r'(<li class="toctree-l1) has-children("><a [^>]*>[^<]*</a>)<input .*?</label><ul>.*?</ul>'
    context["furo_navigation_tree"] = re.sub(other, r"\1\2", context.get("furo_navigation_tree", ""), flags=re.DOTALL)


def setup(app) -> dict:
    scripts = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    app.add_config_value("book_scripts", hashlib.sha256(scripts).hexdigest(), "env")  # when these change, all pages are built anew
    app.connect("autodoc-process-docstring", explain)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", anchor_cells)
    app.connect("doctree-read", keep_numbers)
    app.connect("html-page-context", link_code)
    app.connect("html-page-context", tell_on_hover, priority=600)
    app.connect("html-page-context", lighten, priority=700)
    app.connect("html-page-context", fold_tree, priority=900)  # after the theme has made it
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
