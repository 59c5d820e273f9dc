"""blockc: an operator-fusion compiler for block programs.

kernel = blockc.compile("examples/attention.blk")      a callable kernel for any sizes
out = kernel(q, k, v)                                  NumPy arrays or torch tensors
blockc.reference("examples/attention.blk", Q=q, ...)   the float64 meaning
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockc.errors import BlockcError, BlockcWarning
    from blockc.kernel import Kernel, compile, reference

__all__ = ["BlockcError", "BlockcWarning", "Kernel", "compile", "reference"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the compiler when it is first used: `blockc --help` does not need it."""
    if name in ("BlockcError", "BlockcWarning"):
        from blockc import errors

        return getattr(errors, name)
    if name in __all__:
        from blockc import kernel

        return getattr(kernel, name)
    raise AttributeError(f"module 'blockc' has no attribute {name!r}")
