"""Small machine files for tests, to be changed by them."""

from __future__ import annotations

GOOD = """\
name = "small"
backend = "none"
units = 4
dispatch = "4 us"

[[tier]]
name = "outer"
capacity = "1 GiB"
read = "10 GB/s"
write = "5 GB/s"
scope = "device"
kind = "scratchpad"

[[tier]]
name = "inner"
capacity = "64 KiB"
read = "20 GB/s"
write = "20 GB/s"
scope = "unit"
kind = "scratchpad"
alignment = "32 B"

[[compute]]
name = "core"
operands = ["inner", "inner"]
accumulator = "inner"
matmul.f16 = { rate = "2 TFLOP/s", tile = [16, 16, 16] }
vector.f32 = { rate = "1 TFLOP/s" }
special.f32 = { rate = "100 GOP/s" }
"""
# Another compute unit, of the same name.
SECOND_UNIT = """\
[[compute]]
name = "core"
operands = ["inner"]
accumulator = "inner"
vector.i8.rate = "1 OP/s"

"""
# The same tiers with a third one, and the ways between them spelt out.
THIRD = """
[[tier]]
name = "results"
capacity = "32 KiB"
read = "20 GB/s"
write = "20 GB/s"
scope = "unit"
kind = "scratchpad"
"""


def move(source: str, destination: str, bandwidth: str = "1 GB/s") -> str:
    """The text of a move."""
    return f'\n[[move]]\nfrom = "{source}"\nto = "{destination}"\nbandwidth = "{bandwidth}"\n'


WITH_MOVES = GOOD.replace('accumulator = "inner"', 'accumulator = "results"').replace(
    "\n[[compute]]", THIRD + "\n[[compute]]"
)
WAYS = move("outer", "inner") + move("results", "outer")


def changed(*changes: tuple[str, str], text: str = GOOD) -> str:
    """The text with replacements, each of the first place where it is found."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text
