"""Options of the test run, and what holds in all of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from blockc.ir.block import Program
from blockc.passes.measure import decreases


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites the expected texts under `tests/data` instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected texts under tests/data")


def pytest_configure() -> None:
    """Programs are many small values that live long and form no cycles: they are searched for garbage less often."""
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(autouse=True, scope="session")
def _every_step_decreases_the_measure() -> Iterator[None]:
    """The fuser stops at a step that does not, and says so. In a test it fails."""

    def asserted(before: Program, after: Program) -> bool:
        assert decreases(before, after), "a step of the fuser does not decrease the measure"
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockc.passes.fuse.decreases", asserted)
        yield
