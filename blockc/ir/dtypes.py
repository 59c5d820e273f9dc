"""Element types: the names of the language, their sizes and how they combine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. `size` is in bytes; `kind` is "float", "int" or "bool"."""

    name: str
    size: int
    kind: str


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("f64", 8, "float"),
        DType("f32", 4, "float"),
        DType("f16", 2, "float"),
        DType("bf16", 2, "float"),
        DType("f8e4m3", 1, "float"),
        DType("f8e5m2", 1, "float"),
        DType("i32", 4, "int"),
        DType("i8", 1, "int"),
        DType("bool", 1, "bool"),
    )
}

# What NumPy (with ml_dtypes for the types that it lacks) calls each of them.
NUMPY_NAMES: dict[str, str] = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "i32": "int32",
    "i8": "int8",
    "bool": "bool",
}


def is_float(name: str) -> bool:
    """True for the floating types."""
    return DTYPES[name].kind == "float"


def real(*names: str) -> str:
    """The type of a computed real value: f64 if an operand is f64, else f32 (design, section 3)."""
    return "f64" if "f64" in names else "f32"


def number(*names: str) -> str:
    """The type of a sum or product: i32 of integers and booleans, else as `real`."""
    if names and all(DTYPES[name].kind != "float" for name in names):
        return "i32"
    return real(*names)
