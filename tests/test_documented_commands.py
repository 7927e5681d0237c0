"""Every command on every page is one that its job's parser takes; make targets, recipes and files that pages name are there."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro

from rayrec.registry import ResolvedModel
from rayrec.typed_json import ConfigError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULE = re.compile(r"(?:^|\s)(?:(?:\.venv/bin/)?python -m )((?:jobs|studies)\.[a-z_0-9]+)\s*(.*)")
INLINE = re.compile(r"`(?:(?:\.venv/bin/)?python -m )?((?:jobs|studies)\.[a-z_0-9]+) ([^`]+)`")
FAMILY_OF_MODEL = {
    "ranker": ("ranker", "first", "teacher", "student"), "retriever": ("retriever", "liger", "mender", "tiger", "sasrec"),
    "language_model": ("first-lm", "item-lm"), "content": ("spar", "embsum"),
}  # fmt: skip

RUN_ELSEWHERE = {"your_own_model.md": "card"}  # of a family that its own test makes, and runs


class Parsed(BaseException):
    """In place of what a command would do."""


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Module and arguments of each command in a page's shell blocks."""
    for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("#") and (found := MODULE.search(line)):
                own, _, inner = found[2].partition(" -- ")
                yield found[1], own
                if inner:
                    yield from commands(f"```\n{inner}\n```")


def inline_commands(text: str) -> Iterator[tuple[str, str]]:
    """Those in running text, which may leave out what is required; not those with alternatives, dots or a MODEL of any family."""
    for module, arguments in INLINE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "--" in arguments and not re.search(r"\||\.\.\.|\bMODEL\b", arguments):
            yield module, " ".join(arguments.split())


def family_of_model(name: str) -> str:
    """A page's models are called what they are."""
    bare = name.removeprefix("models:/").removeprefix("runs/").split("/")[0].split("@")[0]
    found = [family for family, names in FAMILY_OF_MODEL.items() if bare in names]
    if not found:
        raise AssertionError(f"no family is known for the model {name!r} of a page; add it to FAMILY_OF_MODEL")
    return found[0]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a module's ``main`` up to the end of parsing. Models are what their names say."""
    cli, subcommands = tyro.cli, tyro.extras.subcommand_cli_from_dict

    def parsing(parser: Any) -> Any:
        def stop(*args: Any, **kwargs: Any) -> None:
            parser(*args, **kwargs)
            raise Parsed

        return stop

    monkeypatch.setattr(tyro, "cli", parsing(cli))
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parsing(subcommands))

    def run(module: str, arguments: str) -> None:
        job = import_module(module)
        if hasattr(job, "resolve_model"):
            monkeypatch.setattr(job, "resolve_model", lambda name: ResolvedModel(Path(name), name, "1"))
            monkeypatch.setattr(job, "bundle_kind", lambda folder: family_of_model(str(folder)), raising=False)
        monkeypatch.setattr("sys.argv", [module, *shlex.split(arguments.replace("$PWD", "/work"), comments=True)])
        job.main()

    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_command_of_a_page_is_one_that_its_job_takes(
    page: Path, parse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text(encoding="utf-8")
    for module, arguments in dict.fromkeys(commands(text)):
        if RUN_ELSEWHERE.get(page.name, "\n") in arguments:
            continue
        try:
            parse(module, arguments)
        except Parsed:
            continue
        except (SystemExit, ConfigError) as error:
            pytest.fail(f"{module} {arguments}\n{error}\n{capsys.readouterr().err}")
        pytest.fail(f"{module} did not parse its command line by tyro")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_option_in_running_text_is_one_of_its_job(
    page: Path, parse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, arguments in dict.fromkeys(inline_commands(page.read_text(encoding="utf-8"))):
        try:
            parse(module, arguments)
        except (Parsed, SystemExit):
            told = capsys.readouterr().err
            assert "Unrecognized" not in told, f"{module} {arguments}\n{told}"
            assert "invalid" not in told, f"{module} {arguments}\n{told}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_plans_and_config_files_that_a_page_names_are_there(page: Path) -> None:
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(
        block or inline for block, inline in re.findall(r"```(?:sh)?\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    )
    for target in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for file in re.findall(r"(?<![\w/])((?:serve_apps|studies/plans|tune_spaces)/[\w/.-]+\.(?:yaml|json|py))", text):
        assert (ROOT / file).is_file(), file
