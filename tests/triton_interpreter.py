"""Triton's interpreter with its faults repaired: import this, with TRITON_INTERPRET=1 set, before kernels run.

It computes bf16 on bit patterns, casts to it by cutting bits off, rounds `fma` twice, and gives the results of
comparisons of scalars the type of their operands. That of Triton 3.6 counts no loop to a scalar where NumPy converts
only arrays without axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_cast = interpreter.InterpreterBuilder.cast_impl
_dot = interpreter.InterpreterBuilder.create_dot
_patch_lang_tensor = interpreter._patch_lang_tensor


def widened(bits: Any) -> Any:
    """Patterns of bf16 as f32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def rounded(numbers: Any) -> Any:
    """Numbers in f32 as patterns of bf16: to the nearest, ties to even."""
    numbers = np.asarray(numbers, np.float32)
    bits = numbers.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FC0, nearest).astype(np.uint16)


def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
    """A cast, through f32 from and to bf16."""
    source, target = src.dtype.scalar, dst_type.scalar
    if source == tl.bfloat16 and target != tl.bfloat16:
        return _cast(self, interpreter.TensorHandle(widened(src.data), tl.float32), dst_type)
    if target == tl.bfloat16 and source != tl.bfloat16:
        wide = _cast(self, src, tl.float32)
        return interpreter.TensorHandle(rounded(wide.data), tl.bfloat16)
    return _cast(self, src, dst_type)


def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    """A product of matrices; bf16 is exact in f32."""
    sides = (
        interpreter.TensorHandle(widened(side.data), tl.float32) if side.dtype.scalar == tl.bfloat16 else side
        for side in (a, b)
    )
    return _dot(self, *sides, d, *options)


def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """A product and a sum, rounded once."""
    first, second, third = (np.asarray(side.data, np.float64) for side in (x, y, z))
    return interpreter.TensorHandle((first * second + third).astype(z.data.dtype), z.dtype.scalar)


def create_splat(self: Any, ret_ty: Any, arg: Any) -> Any:
    """A scalar as a block, in the type that it is held in."""
    data = np.asarray(arg.data)
    return interpreter.TensorHandle(np.full(ret_ty.shape, data.reshape(-1)[0], dtype=data.dtype), arg.dtype.scalar)


def patch_lang_tensor(tensor: Any, scope: Any) -> None:
    """What tensors do in the interpreter; one with a single element is a whole number where Python asks for one."""
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter.InterpreterBuilder.cast_impl = cast_impl
interpreter.InterpreterBuilder.create_dot = create_dot
interpreter.InterpreterBuilder.create_fma = create_fma
interpreter.InterpreterBuilder.create_splat = create_splat
interpreter._patch_lang_tensor = patch_lang_tensor
