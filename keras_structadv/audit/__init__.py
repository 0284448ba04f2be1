"""How far images can move before a model fails."""

from keras_structadv.audit.evaluate import evaluate_robustness
from keras_structadv.audit.report import RobustnessReport
from keras_structadv.audit.worst_case_accuracy import WorstCaseAccuracy

__all__ = ["RobustnessReport", "WorstCaseAccuracy", "evaluate_robustness"]
