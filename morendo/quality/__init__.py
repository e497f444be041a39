"""How good an artifact is: perplexity, and how far it is from the float model.

A tool of the workbench, neither compiler nor runtime, so it lives in morendo/ and may use both:
`scores` is plain numpy, `cache` files only, `reference` and `dequantized` run torch.
"""

from .measure import Report, Row, evaluate
from .scores import Score, TokenScores, compare, cut_windows, summarize
from .tasks import Question, TaskReport, TaskRow, evaluate_tasks, read_questions

__all__ = [
    "Question",
    "Report",
    "Row",
    "Score",
    "TaskReport",
    "TaskRow",
    "TokenScores",
    "compare",
    "cut_windows",
    "evaluate",
    "evaluate_tasks",
    "read_questions",
    "summarize",
]
