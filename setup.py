"""Package metadata from settings.ini, the project's only configuration."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
name = settings["lib_name"]

setup(
    name=name,
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"],
    # The papermill notebooks stay in nbs/, the paper's numbers in figures/published/; a built package carries both.
    packages=[*find_packages(include=[name, f"{name}.*"]), f"{name}.notebooks", f"{name}.published"],
    package_dir={f"{name}.notebooks": "nbs", f"{name}.published": "figures/published"},
    package_data={
        name: ["py.typed", "data/**/*"],
        f"{name}.notebooks": ["paper/**/*.ipynb", "paper/**/*.yaml", "guides/**/*.ipynb", "guides/**/*.yaml"],
        f"{name}.published": ["*.csv", "README.md"],
    },
    include_package_data=False,
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in ("cluster", "faiss", "dev", "book")},
    entry_points={
        "console_scripts": settings["console_scripts"].splitlines(),
        "jupyter_client.kernel_provisioners": [f"{name}-fork = {name}.reproduce:ForkedKernel"],
    },
    zip_safe=False,
)
