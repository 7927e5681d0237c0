"""The simulated ads world: a funnel with known true probabilities, written as labeled, unlabeled and candidate logs."""

from rayrec.data.simulation.config import FunnelConfig, SimulationConfig, WorldConfig
from rayrec.data.simulation.funnel import STAGES, Simulator, run_funnel
from rayrec.data.simulation.logs import SimulatedLogs, SimulationSummary, simulate
from rayrec.data.simulation.student_view import open_student_view, student_schema, teacher_only_features

__all__ = [
    "STAGES",
    "FunnelConfig",
    "SimulatedLogs",
    "SimulationConfig",
    "SimulationSummary",
    "Simulator",
    "WorldConfig",
    "open_student_view",
    "run_funnel",
    "simulate",
    "student_schema",
    "teacher_only_features",
]
