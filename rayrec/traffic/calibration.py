"""How many positives a ranker expects among what is shown, to be held against feedback."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayrec.data.log.schema import TaskLabel


def expected_positives(
    probabilities: Mapping[str, NDArray[np.float64]], shown: NDArray[np.int64], tasks: Sequence[TaskLabel]
) -> dict[str, float]:
    """By task, the sum over the rows ``shown`` of the probability of a yes. See ``joint_probabilities``."""
    of_shown = {task: values[shown] for task, values in probabilities.items()}
    return {task: float(values.sum()) for task, values in joint_probabilities(of_shown, tasks).items()}


def joint_probabilities(
    probabilities: Mapping[str, NDArray[np.float64]], tasks: Sequence[TaskLabel]
) -> dict[str, NDArray[np.float64]]:
    """(N,) by task: of a yes of the task and of all that it takes to observe it.

    probabilities: (N,) by task. Of a task that is observed when another is 1 a probability is given that one: the yes of both is
    their product, and so on up. A task whose chain lacks a probability is left out, and so is one in a circle.
    """
    parents = {task.name: task.observed_when for task in tasks}
    found = {}
    for name in parents:
        chain: list[str] = []
        task: str | None = name
        while task is not None and task not in chain and task in probabilities:
            chain.append(task)
            task = parents.get(task)
        if task is None:
            found[name] = np.prod([probabilities[t] for t in chain], axis=0)
    return found
