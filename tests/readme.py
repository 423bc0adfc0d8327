"""Write README.md from nbs/index.ipynb: the same text, with links that start at the top."""
import re
from pathlib import Path

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

TOP = Path(__file__).parents[1]


def render_readme() -> str:
    "Convert nbs/index.ipynb, and turn its links, which start in nbs/, into links that start at the top."
    exporter = MarkdownExporter()
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"hide_input"}), enabled=True)
    text, _ = exporter.from_filename(str(TOP / "nbs" / "index.ipynb"))
    text = re.sub(r"^```\n(?=from |import )", "```python\n", text, flags=re.M)  # the cleaned notebook names no language
    text = re.sub(r"\]\((?=\w[^:)]*\))", "](nbs/", text)  # 00_facts.ipynb -> nbs/00_facts.ipynb
    text = re.sub(r"""(\]\(|src="|href=")\.\./""", r"\1", text)  # ../figures/a.svg -> figures/a.svg
    return text.strip() + "\n"


if __name__ == "__main__":
    (TOP / "README.md").write_text(render_readme(), encoding="utf-8")
