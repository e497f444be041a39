"""The plan now lives in ir/plan.py, since it is the last IR."""

from morendo.ir.plan import *  # noqa: F403
