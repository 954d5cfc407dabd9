"""Scores of predicted videos: overlap, the VPS protocol, false alarms and steadiness."""

from nnunet_plugins.evaluation.page import write_report
from nnunet_plugins.evaluation.report import Report
from nnunet_plugins.evaluation.video import evaluate_videos

__all__ = ["Report", "evaluate_videos", "write_report"]
