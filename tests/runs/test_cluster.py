"""Where an own Ray keeps its sockets."""

from pathlib import Path

import pytest

from rayrec.errors import UserError
from rayrec.runs import cluster


def test_a_temporary_folder_with_a_long_name_gives_way_to_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert cluster._short_temporary_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert cluster._short_temporary_folder() == "/tmp/ray"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{long}: is too long .* set RAY_TMPDIR"):
        cluster._short_temporary_folder()
