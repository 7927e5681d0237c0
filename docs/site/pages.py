"""What the site has beside the pages of this folder: the README first, the results, and a page of reference for each module.

Links between them are written for a reader of the repository and hold on the site too; what leads to another file of the
repository becomes its name.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rayrec", "jobs", "tune_spaces", "serve_apps", "studies")
BESIDE = {"README.md": "index.md", "benchmarks/RESULTS.md": "results.md"}
TASKS = (
    "concepts", "logs", "training", "optimizers", "sweeps", "compare", "retrieval", "preferences", "content",
    "language_models", "serving", "your_own_model", "cluster", "layout",
)  # fmt: skip


class _NoHtml(Extension):
    """``<name>`` in a docstring is a name, not a tag."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(_NoHtml())  # type: ignore[arg-type]
    folder = Path(config.docs_dir)
    groups = {"Methods": "methods", "Models": "models"}
    config.nav = [
        "index.md",
        {"Tasks": [f"{name}.md" for name in TASKS if (folder / f"{name}.md").is_file()]},
        *(
            {title: [f"{name}.md", *(f"{name}/{page.name}" for page in sorted((folder / name).glob("*.md")))]}
            for title, name in groups.items()
        ),
        "results.md",
        {"Reference": [{package: _nested(package)} for package in PACKAGES]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for module in _modules():
        files.append(File.generated(config, _page_of(module), content=f"---\ntitle: {module}\n---\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = next((PurePosixPath(s) for s, p in BESIDE.items() if p == here), PurePosixPath("docs") / here)
    if here.startswith("reference/"):
        return markdown

    def rewritten(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        if ":" in target or not target:
            return found.group()
        path = os.path.normpath(source.parent / target)
        inside = BESIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None:
            return text if text.startswith("`") else f"`{path}`" if text == target else f"{text} (`{path}`)"
        return f"{picture}[{text}]({os.path.relpath(inside, PurePosixPath(here).parent)}{anchor or ''})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)]*)?\)", rewritten, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Raises PluginError for a page that would load something from elsewhere."""
    for file in Path(config.site_dir).rglob("*.html"):
        for found in re.findall(
            r'src="(?:https?:)?//[^"]*"|<link[^>]+href="(?:https?:)?//[^"]*"', file.read_text(encoding="utf-8")
        ):
            raise PluginError(f"{file.name} loads from elsewhere: {found}")


def _modules() -> list[str]:
    """Those that have something to say: a docstring, or public names."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if tree.body:
                parts = file.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def _page_of(module: str) -> str:
    return f"reference/{module}.md"


def _nested(package: str) -> list[Any]:
    """Modules of a package, and the packages in it, as a part of the navigation."""
    modules = _modules()
    found: list[Any] = [_page_of(package)] if package in modules else []
    depth = package.count(".") + 1
    for name in sorted({m.split(".")[depth] for m in modules if m.startswith(f"{package}.")}):
        inner = f"{package}.{name}"
        children = any(m.startswith(f"{inner}.") for m in modules)
        found.append({name: _nested(inner) if children else _page_of(inner)})
    return found
