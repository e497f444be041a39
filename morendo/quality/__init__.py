"""How good an artifact is: perplexity, and how far it is from the float model.

A tool of the workbench, neither compiler nor runtime, so it lives in morendo/ and may use both:
`scores` is plain numpy, `cache` files only, `reference` and `dequantized` run torch.
"""

from .measure import Report, Row, evaluate
from .scores import Score, TokenScores, compare, cut_windows, summarize

__all__ = [
    "Report",
    "Row",
    "Score",
    "TokenScores",
    "compare",
    "cut_windows",
    "evaluate",
    "summarize",
]
