"""Options of the test run, its order, and what holds in all of it."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from campaign import rare_collections

from blockc.ir.block import Program
from blockc.passes.measure import decreases

# The files that take longest come first, so that no worker is left with a long one in the end.
LONGEST = (
    "test_meaning",
    "test_numbers",
    "test_kernels",
    "test_spellings",
    "test_triton",
    "test_cli",
    "test_machine_plans",
    "test_lint",
    "test_fuse",
    "test_gpu_kernel",
    "test_field_meaning",
    "test_cost",
    "test_simulator",
    "test_documents",
    "test_machine_commands",
    "test_rules",
    "test_bound_loops",
    "test_numpy_source",
    "test_explain",
    "test_hostile_input",
    "test_verifying",
    "test_report",
    "test_why_not",
    "test_block_text",
    "test_interchange",
    "test_split_kernels",
    "test_pairs",
    "test_machines",
    "test_origins",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites the expected texts under `tests/data` instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected texts under tests/data")


def pytest_configure(config: pytest.Config) -> None:
    rare_collections()
    if not hasattr(config, "workerinput"):  # workers and what they start inherit it
        os.environ["BLOCKC_CACHE"] = tempfile.mkdtemp(prefix="blockc-tests-")
        for library in ("OPENBLAS", "OMP"):  # a worker for each core: threads would wait for one another, busily
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["BLOCKC_CACHE"], ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker ends by an interrupt, which a collection of garbage would report as an exception that is ignored."""
    if hasattr(session.config, "workerinput"):
        gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others, and the tests of a file, as they were."""
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True, scope="session")
def _every_step_decreases_the_measure() -> Iterator[None]:
    """The fuser stops at a step that does not, and says so. In a test it fails."""

    def asserted(before: Program, after: Program) -> bool:
        assert decreases(before, after), "a step of the fuser does not decrease the measure"
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockc.passes.fuse.decreases", asserted)
        yield
