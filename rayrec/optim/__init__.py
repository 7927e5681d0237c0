"""Optimizers and what surrounds a step. Knows torch only."""

from rayrec.optim.config import MuonConfig, OptimizerConfig, OptimizerName, ProjectionConfig, build_optimizer
from rayrec.optim.gradient_clipping import clip_gradients

__all__ = ["MuonConfig", "OptimizerConfig", "OptimizerName", "ProjectionConfig", "build_optimizer", "clip_gradients"]
