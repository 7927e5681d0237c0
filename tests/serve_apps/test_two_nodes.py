"""Items that change on one node and are asked for on another, on two raylets in processes of their own."""

from pathlib import Path

import pytest

from tests.serve_apps.own_process import run_on_nodes


@pytest.mark.slow
def test_an_item_added_or_taken_out_on_one_node_is_so_on_the_other(tmp_path: Path) -> None:
    run_on_nodes("tests.serve_apps.two_nodes", tmp_path)
