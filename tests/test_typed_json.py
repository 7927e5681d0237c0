"""Dataclasses to JSON and back: nothing is lost, nothing unknown gets in, no reader sees half a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict

from rayrec.files import write_text_atomically
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json, to_plain


@dataclass(frozen=True)
class Part:
    rate: float
    names: tuple[str, ...] = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Whole:
    part: Part
    steps: int | None = None
    folder: Path | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@given(
    rate=st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(st.text()),
    steps=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_a_value_comes_back_exactly(rate: float, names: list[str], steps: int | None) -> None:
    whole = Whole(Part(rate, tuple(names)), steps, Path("a/b"))
    assert from_json(Whole, to_json(whole)) == whole
    assert from_plain(Whole, to_plain(whole)) == whole


def test_the_plain_form_is_json_of_dicts_lists_and_scalars() -> None:
    plain = to_plain(Whole(Part(0.1, ("x",)), 3, Path("runs/1")))
    assert plain == {"part": {"rate": 0.1, "names": ["x"]}, "steps": 3, "folder": "runs/1"}
    assert json.loads(to_json(Whole(Part(0.1, ("x",)), 3, Path("runs/1")))) == plain


@dataclass(frozen=True)
class Plain:
    """Says nothing about unknown fields, and has a constant by which a union could tell it."""

    inner: Part
    epochs: int = 1
    kind: str = field(default="plain", init=False)


def test_an_unknown_field_is_refused_in_classes_that_say_nothing_about_it() -> None:
    with pytest.raises(ConfigError, match=r"^the given text: epcohs: [^;]*given: 2\)$"):
        from_json(Plain, '{"inner": {"rate": 1}, "epcohs": 2, "kind": "plain"}')


def test_a_constant_kind_may_be_written_down() -> None:
    plain = Plain(Part(1.0), 3)
    assert to_plain(plain)["kind"] == "plain"
    assert from_json(Plain, to_json(plain)) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"part": {"rate": 1, "rte": 2}}', r"part\.rte: .*given: 2"),
        ('{"part": {"rate": "fast"}}', r"part\.rate: .*number.*given: 'fast'"),
        ('{"part": {"rate": 1, "names": [1]}}', r"part\.names\.0: .*string.*given: 1"),
        ('{"steps": 1}', r"part: Field required"),
        ('{"part": {}, "steps": 1.5}', r"part\.rate: Field required.*; steps: .*integer.*given: 1\.5"),
        ("[1, 2]", r"the whole document: .*given: \[1, 2\]"),
        ("{", r"the whole document: Invalid JSON"),
        ("", r"the whole document: Invalid JSON"),
    ],
)
def test_a_wrong_document_names_the_file_and_every_field_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^schema\.json: {message}"):
        from_json(Whole, text, "schema.json")


def test_a_long_wrong_value_is_cut_short() -> None:
    with pytest.raises(ConfigError) as error:
        from_json(Whole, json.dumps({"part": "x" * 10_000}))
    assert len(str(error.value)) < 300


def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_text_atomically(path, "old")
    write_text_atomically(path, "grün")
    assert path.read_bytes() == "grün".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    write_text_atomically(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
