"""Options that the whole suite shares."""

import os

import pytest

# Torch's threads spin between small operations and stall each other on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the IR after in tests/golden"
    )
