"""Where a model goes wrong: every op of an artifact's plan against what it should compute.

A tool of the workbench, like morendo/quality: it may use the compiler, the runtime and torch.
`captured` runs the plan, `torch_values` the original, `rules` says what ops mean without rounding,
`compare` puts them side by side, `bisect` finds the pass after which the function is another one.
"""

from .compare import OpCheck, Report, debug

__all__ = ["OpCheck", "Report", "debug"]
