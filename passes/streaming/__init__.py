"""Running a module on text in torch: stage by stage, with gradients, or many windows at once."""

WRITING = "let the model write"
"""The title of the progress of text that a model writes."""
