"""Measurements of a system: how its gradient flows, its dynamics, and what each estimator's gradient is worth."""

from unrollax.diagnosis._compare import compare
from unrollax.diagnosis._comparison import Comparison
from unrollax.diagnosis._decay import Decay
from unrollax.diagnosis._depth import Depth, depth_flow
from unrollax.diagnosis._dynamics import Lyapunov, lyapunov
from unrollax.diagnosis._fixed_point import fixed_point_depends
from unrollax.diagnosis._flow import gradient_flow, state_flow
from unrollax.diagnosis._flows import Flow, StateFlow
from unrollax.diagnosis._gate import Gate
from unrollax.diagnosis._gates import Gates, gate_statistics
from unrollax.diagnosis._lr_range import lr_range_test
from unrollax.diagnosis._lr_reading import LRRange
from unrollax.diagnosis._mean_field import MeanField, mean_field
from unrollax.diagnosis._monitors import FlowHistory, FlowMonitor, observers
from unrollax.diagnosis._schedule_report import ScheduleEntries, ScheduleReport
from unrollax.diagnosis._schedules import diagnose_schedules
from unrollax.diagnosis._surface import Surface, loss_surface
from unrollax.diagnosis._sweep import sweep
from unrollax.diagnosis._trajectories import Trajectories, trajectories
from unrollax.diagnosis._watch import Watched, watch

__all__ = [
    "Comparison",
    "Decay",
    "Depth",
    "Flow",
    "FlowHistory",
    "FlowMonitor",
    "Gate",
    "Gates",
    "LRRange",
    "Lyapunov",
    "MeanField",
    "ScheduleEntries",
    "ScheduleReport",
    "StateFlow",
    "Surface",
    "Trajectories",
    "Watched",
    "compare",
    "depth_flow",
    "diagnose_schedules",
    "fixed_point_depends",
    "gate_statistics",
    "gradient_flow",
    "loss_surface",
    "lr_range_test",
    "lyapunov",
    "mean_field",
    "observers",
    "state_flow",
    "sweep",
    "trajectories",
    "watch",
]
