"""What the README says works: its Python example runs, its links lead somewhere, its commands name jobs that exist."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_python_example_runs(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), found)
    assert (tmp_path / "logs" / "scored" / "schema.json").is_file()
    assert (runs / "from-python" / "report" / "report.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_commands_to_modules(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for module in set(re.findall(r"python -m ((?:jobs|benchmarks|studies)\.[a-z_0-9.]+)", text)):
        assert importlib.util.find_spec(module.rstrip(".")) is not None, module
