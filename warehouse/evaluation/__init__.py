"""Evaluation over the lake: every metric of the registry at any level, with baselines, intervals and a leaderboard."""

from warehouse.evaluation.comparison import compare
from warehouse.evaluation.features import feature_correlation
from warehouse.evaluation.inputs import Inputs
from warehouse.evaluation.leaderboard import Board, leaderboard
from warehouse.evaluation.listing import metrics_frame
from warehouse.evaluation.records import Evaluation, as_frame, details_frame, scored
from warehouse.evaluation.runner import evaluate

__all__ = [
    "Board",
    "Evaluation",
    "Inputs",
    "as_frame",
    "compare",
    "details_frame",
    "evaluate",
    "feature_correlation",
    "leaderboard",
    "metrics_frame",
    "scored",
]
