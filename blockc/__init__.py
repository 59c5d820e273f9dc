"""blockc: an operator-fusion compiler for block programs."""

from __future__ import annotations

if __name__ != "blockc":  # a second copy, such as `import ir` from a checkout would make, has classes of its own
    raise ImportError("import this package as `blockc`")
