"""What docs/logs.md tells is true: its files and commands, run as they stand there."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from jobs import import_logs, simulate
from rayrec.data.importing.importing import ImportOptions, import_log
from rayrec.data.log import Log
from rayrec.data.public.logs import PUBLIC_DATASETS

PAGE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


def run(command: str) -> None:
    """A line ``.venv/bin/python -m jobs.<name> ...``."""
    _, _, module, *flags = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *flags])
        {"jobs.import_logs": import_logs, "jobs.simulate": simulate}[module].main()


def commands(*words: str) -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if " -m " in line]
    return [line for line in lines if all(word in line for word in words)]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's table and schema, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("shop.csv").write_text(blocks("csv")[0])
    Path("shop.json").write_text(blocks("json")[0])
    return tmp_path


def test_the_table_is_imported_with_the_summary_that_the_page_shows(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, more = commands("table")
    run(own)
    printed = capsys.readouterr().out.splitlines()
    shown = next(block for block in blocks("") if block.startswith("logs/shop: ")).splitlines()
    assert printed[1:] == shown[1:]
    assert printed[0].startswith("logs/shop: 10 rows in")
    run(more)
    assert Log.open("logs/shop-candidates").schema == Log.open("logs/shop").schema


def test_public_data_sets_are_imported_and_all_are_listed(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \| .* \| (?:`([a-z0-9_]+)/|the same)", PAGE, re.MULTILINE)
    folders = {name: folder for name, folder in listed if folder}
    assert {name for name, _ in listed} == set(PUBLIC_DATASETS)
    assert folders == {name: PUBLIC_DATASETS[name].folder for name in folders}  # type: ignore[index]
    if not (data_root / "census_income_kdd").is_dir():
        pytest.skip(f"no {data_root / 'census_income_kdd'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYREC_DATA", str(data_root))
    (command,) = commands("census-income")
    run(command)
    assert Log.open("logs/census-income").rows("train") > 60_000


def test_the_world_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = commands("jobs.simulate")
    run(command)
    assert Log.open("logs/ads/labeled").splits == ("train", "valid", "test")
    assert Log.open("logs/ads/candidates").splits == ("test",)


def test_the_new_importer_imports(shop: Path) -> None:
    (shop / "shop_days.py").write_text(blocks("python")[0])
    spec = importlib.util.spec_from_file_location("shop_days", shop / "shop_days.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset = module.SHOP_DAYS
    out = import_log(dataset.open_source(shop), dataset.schema, dataset.split, shop / "log", ImportOptions(quiet=True))
    hours = next(f for f in Log.open(out).schema.categorical if f.name == "hour").vocabulary
    assert hours is not None
    assert "9" in hours  # 08:00 UTC
