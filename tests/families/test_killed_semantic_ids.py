"""Semantic IDs whose writer is killed: the old ones or none."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.families.retriever import semantic_id_files
from rayrec.families.retriever.semantic_id_files import read_semantic_ids, write_semantic_ids
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizedItems, TokenizerConfig, fit_tokenizer


@pytest.mark.parametrize("files", [1, 2])
def test_semantic_ids_whose_writer_is_killed_are_the_old_ones_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    made = [
        fit_tokenizer(torch.randn(30, 8), TokenizerConfig(kmeans=ResidualKMeansConfig(2, 4, iterations=3)))
        for _ in range(2)
    ]
    out, written = tmp_path / "out" / "ids", semantic_id_files.save_file
    out.parent.mkdir()

    def write_and_be_killed(items: TokenizedItems) -> None:
        calls = 0

        def killed(*given: Any) -> None:
            nonlocal calls
            written(*given)
            calls += 1
            if calls == files:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            monkeypatch.setattr(semantic_id_files, "save_file", killed)
            try:
                write_semantic_ids(out, items, "none", "new")
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    write_and_be_killed(made[1])
    assert not out.exists()
    write_semantic_ids(out, made[0], "none", "old")
    write_and_be_killed(made[1])
    assert read_semantic_ids(out).record.catalogue == "old"
    write_semantic_ids(out, made[1], "none", "new")
    assert os.listdir(out.parent) == ["ids"]
    assert read_semantic_ids(out).record.catalogue == "new"
