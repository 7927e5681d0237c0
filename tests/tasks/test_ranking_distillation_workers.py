"""UKDSL and SCR on two workers (gloo): the means run over the rows of both, as one worker with the joint batch takes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from rayrec.batch import Batch
from rayrec.families.ranker.task import RankingTask
from rayrec.methods.distillation import DistillationConfig
from rayrec.methods.inverse_propensity import InversePropensity
from rayrec.methods.perturbation import PerturbationConfig
from tests.tasks.test_ranking_distillation import batch_of, task_of

HEADS = (
    DistillationConfig(labeled_weight=0.5, unlabeled_weight=2.0, confidence=1.0),
    DistillationConfig(labeled_weight=1.0, unlabeled_weight=1.0, head="auxiliary", temperature=2.0),
)
METHODS: tuple[dict[str, Any], ...] = (
    {"distillation": HEADS[0]},
    {"distillation": HEADS[1]},
    # Every copy loses all its ids: the one perturbation that draws alike on each worker.
    {
        "distillation": None,
        "perturbation": PerturbationConfig(
            "scr", 2.0, unlabeled=True, dense_noise=0.0, embedding_noise=0.0, feature_dropout=1.0
        ),
    },
)
SHARES = ((slice(0, 20), slice(0, 90)), (slice(20, 64), slice(90, 128)))
"""Labeled and unlabeled rows of each worker, unevenly split."""


def _batches(small_log: Path) -> tuple[Batch, Batch]:
    """64 labeled and 128 unlabeled rows with propensities; 30 unlabeled ones without a score, all in the first worker's share."""
    labeled, unlabeled = batch_of(small_log), batch_of(small_log, 128, seed=1)
    unlabeled = replace(unlabeled, weights=torch.linspace(0.1, 2.0, 128))
    labeled.extras["propensity"] = torch.linspace(0.2, 1.0, 64, dtype=torch.float64)
    unlabeled.extras["teacher_click"][:30] = torch.nan
    return labeled, replace(unlabeled, labels=torch.full_like(unlabeled.labels, torch.nan))


def _gradients(task: RankingTask, labeled: Batch, unlabeled: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = task.build()
    task.loss(model, labeled, unlabeled).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _worker(rank: int, small_log: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    labeled, unlabeled = _batches(Path(small_log))
    for i, methods in enumerate(METHODS):
        task = task_of(Path(small_log), **methods, inverse_propensity=InversePropensity("propensity"))
        gradients = _gradients(task, labeled[SHARES[rank][0]], unlabeled[SHARES[rank][1]])
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= 2  # what DistributedDataParallel does
        if rank == 0:
            torch.save(gradients, f"{folder}/gradients-{i}.pt")
    dist.destroy_process_group()


def test_two_workers_learn_from_methods_what_one_worker_learns_from_the_joint_batch(
    small_log: Path, tmp_path: Path
) -> None:
    spawn(_worker, (str(small_log), str(tmp_path)), nprocs=2)
    labeled, unlabeled = _batches(small_log)
    for i, methods in enumerate(METHODS):
        task = task_of(small_log, **methods, inverse_propensity=InversePropensity("propensity"))
        joint = _gradients(task, labeled, unlabeled)
        shared = torch.load(tmp_path / f"gradients-{i}.pt", weights_only=True)
        assert shared.keys() == joint.keys()
        for name, gradient in joint.items():
            torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
        halves = [_gradients(task, labeled[first], unlabeled[second]) for first, second in SHARES]
        name = "wide_dense.weight"
        with pytest.raises(AssertionError):  # means of the workers' own means are something else
            torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, joint[name], rtol=1e-4, atol=1e-6)
