"""From a model file to one of another quantisation."""

from engine.quantize.plan import TARGETS, Plan, PlannedTensor, plan_quantisation
from engine.quantize.run import QuantizeProgress, check_outputs, output_paths, quantize_file

__all__ = [
    "TARGETS",
    "Plan",
    "PlannedTensor",
    "QuantizeProgress",
    "check_outputs",
    "output_paths",
    "plan_quantisation",
    "quantize_file",
]
