"""ONNX models as exporters write them: one file each for a kind of question about the graph.

What an exporter spells out (masks, rotations, layouts, activations) is not matched by its spelling:
the part of the graph is run on numbers, and what comes out says what it is.
"""
