"""Codes from data: streaming calibration windows through a module, rounding with error feedback."""
