"""A node with replicas is lost: on raylets of one machine, in processes of their own."""

from pathlib import Path

import pytest

from tests.serve_apps.own_process import run_on_nodes


@pytest.mark.slow
def test_replicas_of_a_lost_node_come_up_on_another_and_no_answer_changes(tmp_path: Path) -> None:
    run_on_nodes("tests.serve_apps.lost_serving_node", tmp_path)
