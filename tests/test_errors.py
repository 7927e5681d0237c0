"""How a job ends: one line for what the user can mend, 130 after Ctrl-C, a traceback for faults of the program only."""

import ast
import errno
import pickle
from pathlib import Path

import pytest

from jobs.command_line import _Taken
from rayrec.bundle import BundleError
from rayrec.data.importing.reading import SourceError
from rayrec.data.log import LogError
from rayrec.data.log.value_checks import ValueProblem
from rayrec.errors import DiskError, UserError, disk_trouble, told
from rayrec.registry import RegistryError
from rayrec.text.chat_endpoint import ChatError
from rayrec.typed_json import ConfigError
from serve_apps.cascade.stages import StageError
from serve_apps.deploying import DeploymentError
from serve_apps.service.refusals import Problem, RequestError, Unavailable

OF_THEIR_OWN = (
    StageError("early", "died"),
    RequestError([Problem(("body", "k"), "is too large", "too_large")]),
    ValueProblem(3, "column 'x': is infinite"),
    ChatError("no such model", hopeless=True),
    Unavailable("traffic log", "the traffic log is away; ask again", 5),
    _Taken("a command"),
    SourceError("a.csv: is no table", "try --encoding"),
)


@pytest.mark.parametrize("kind", [BundleError, ConfigError, LogError, RegistryError, DeploymentError, DiskError])
def test_every_error_of_the_user_is_a_line_and_exit_code_1(kind: type[UserError]) -> None:
    with pytest.raises(SystemExit) as ended, told():
        raise kind("log: column 'x' is absent")
    assert ended.value.code == "error: log: column 'x' is absent"  # Python prints it to stderr and exits with 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="matrix"), told():
        raise ValueError("matrix")
    with pytest.raises(FileNotFoundError), told():
        raise FileNotFoundError(errno.ENOENT, "No such file", "/a")


def test_ctrl_c_exits_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, told(go_on="run it again"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted; to go on: run it again"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), "/runs/a: no space is left on its disk"),
        (OSError(errno.EROFS, "Read-only file system", "/runs/a"), "/runs/a: its disk is mounted read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/logs/a"), "/logs/a: permission denied"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space is left on its disk ("),
        (RuntimeError("attempt to write a readonly database\n[SQL: x]"), "its disk is mounted read-only ("),
    ],
)
def test_a_disk_that_refuses_is_one_line_even_behind_other_errors(error: Exception, line: str) -> None:
    for raised in (error, _caused_by(error)):
        with pytest.raises(SystemExit) as ended, told():
            raise raised
        assert str(ended.value.code).startswith(f"error: {line}")
        assert "\n" not in str(ended.value.code)


def test_other_errors_are_no_trouble_of_a_disk() -> None:
    assert disk_trouble(RuntimeError("shapes differ")) is None
    assert disk_trouble(OSError(errno.ECONNREFUSED, "refused"), Path("/runs")) is None


def _caused_by(error: Exception) -> Exception:
    outer = RuntimeError("training failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("error", OF_THEIR_OWN, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error: BaseException) -> None:
    other = pickle.loads(pickle.dumps(error))  # noqa: S301 (its own)
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_every_error_that_says_more_than_a_line_is_looked_at() -> None:
    """Those with fields of their own are the ones that a pickle may not bring back."""
    top, found = Path(__file__).parents[1], set()
    for file in (f for room in ("rayrec", "serve_apps", "jobs") for f in (top / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(m, ast.FunctionDef) and m.name == "__init__" for m in node.body
            ):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if any(base.endswith(("Error", "Exception")) for base in bases):
                    found.add(node.name)
    assert found == {type(error).__name__ for error in OF_THEIR_OWN}
