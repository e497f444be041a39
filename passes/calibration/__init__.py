"""Codes from data: streaming calibration windows through a module, rounding with error feedback."""

WRITING = "let the model write"
"""The title of the progress of text that a model writes."""
