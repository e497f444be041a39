"""How long a machine that a file describes would take: a model of its time, not a measurement."""

from .device import DeviceDescription, read_device
from .predict import Answer, Prediction, predict
from .run import described_machine, predict_run
from .work import LinearWork, StepWork, float16_work, plan_work

__all__ = [
    "Answer",
    "DeviceDescription",
    "LinearWork",
    "Prediction",
    "StepWork",
    "described_machine",
    "float16_work",
    "plan_work",
    "predict",
    "predict_run",
    "read_device",
]
