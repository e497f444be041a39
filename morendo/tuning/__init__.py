"""Finding schedules: how far the precision of an answer may fall, measured by generating.

A tool of the workbench like `morendo.quality`: it runs an artifact through a session. What all
answers are compared with are the artifact's own at its top level.
"""

from .compare import ScheduleRow, compare_schedules
from .picture import draw
from .prompts import read_prompts
from .tune import Tuned, tune

__all__ = ["ScheduleRow", "Tuned", "compare_schedules", "draw", "read_prompts", "tune"]
