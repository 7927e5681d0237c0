"""An own Ray without two processes that serve no single job: 1.6 s of CPU, of which a second is waited for.

Ray starts an autoscaler's monitor for a machine that cannot grow, and with ``include_dashboard=False`` still the dashboard's
process, for usage reports that are off. It has no option of ``ray.init`` for either.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import node, utils


class OwnNode(node.Node):
    """A head that will stay alone."""

    def __init__(self, ray_params: Any, **how: Any) -> None:
        ray_params.no_monitor = True
        super().__init__(ray_params, **how)

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        pass


@contextmanager
def few_processes() -> Iterator[None]:
    """Around a ``ray.init`` that starts an own Ray."""
    nodes: Any = node
    checks: Any = utils
    before = nodes.Node, checks.get_dashboard_dependency_error
    nodes.Node = OwnNode
    checks.get_dashboard_dependency_error = lambda: None  # it imports them all to see that they are there
    try:
        yield
    finally:
        nodes.Node, checks.get_dashboard_dependency_error = before
