"""Whether a kernel loads tiles by pointers or by tensor descriptors, which a GPU with an engine for that copies itself.

A descriptor leaves a tile in shared memory, from where tensor cores read it. So descriptors are for kernels whose
products take tiles as they are loaded, and not for those that compute with such tiles on the way, as norms of rows do:
there the tile has to come to registers in any case. Pointers stay unless the compiler says that descriptors are better.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockc.codegen.triton_storage import Function, Loading, Options
from blockc.codegen.triton_types import SIZES, lines, read, tile_type
from blockc.ir.machine import Machine
from blockc.machines.gpus import Gpu
from blockc.triton_kernels import TritonKernels, launched_with

ALIGNMENT = 16  # bytes that rows of a described tensor are apart, times a whole number


@dataclass(frozen=True, slots=True)
class Loads:
    """How a function loads tiles, and why."""

    function: str
    way: Loading
    why: str


@dataclass(frozen=True, slots=True)
class Described:
    """Kernels, the same with tiles loaded by descriptors where there can be some, and by function why it cannot be done
    (`impossible`) and why it should not (`against`)."""

    plain: TritonKernels
    made: TritonKernels
    impossible: dict[str, str]
    against: dict[str, str]


def described(made: TritonKernels, machine: Machine, gpu: Gpu) -> Described:
    """The kernels with descriptors, as far as there can be some."""
    functions = made.source.functions
    if not gpu.copies_tiles:
        why = f"GPUs of capability {gpu.capability / 10} copy no tiles by descriptors"
        return Described(made, made, {function.name: why for function in functions}, {})
    found = launched_with(made, machine, {function.name: Options(loads="descriptors") for function in functions})
    impossible, against = {}, {}
    for function in found.source.functions:
        if why := _obstacle(found, function):
            impossible[function.name] = why
        elif why := _objection(found, function):
            against[function.name] = why
    return Described(made, found, impossible, against)


def _obstacle(made: TritonKernels, function: Function) -> str:
    """Why no descriptor would be used for contiguous tensors of the sizes that the file is tuned for, or ""."""
    parameters = _descriptors(function)
    if not parameters:
        return "no tile of an input can have a descriptor"
    for name, kind in parameters.items():
        text, size = made.source.described[name], SIZES[tile_type(kind).dtype]
        last = sum(key.startswith(f"{text}_s") for key in made.source.strides) - 1
        for stride in (made.source.strides[f"{text}_s{at}"] for at in range(last)):
            if stride * size % ALIGNMENT:
                apart = f"{stride * size} bytes apart, no multiple of {ALIGNMENT}"
                return f"rows of {_argument(made, text)} are {apart}"
    return ""


def _objection(made: TritonKernels, function: Function) -> str:
    """Why descriptors should not be used where they can be, or ""."""
    parameters = _descriptors(function)
    every = list(lines(read(function.text, function.parameters, function.constants)))
    tiles = {
        name: next(iter(line.reads & parameters.keys()), "") for line in every for name in line.makes if line.loads
    }
    loaded = {name: parameter for name, parameter in tiles.items() if parameter}
    multiplied: set[str] = set()
    on_the_way: set[str] = set()
    elsewhere: set[str] = set()
    for line in every:
        operands = [operand for product in line.products for operand in (product.left, product.right)]
        multiplied.update(operand.base for operand in operands)
        on_the_way.update(*(operand.sources for operand in operands))
        elsewhere |= line.reads - {operand.base for operand in operands}
    for name in sorted(loaded.keys() & on_the_way & elsewhere):
        return f"{_argument(made, made.source.described[loaded[name]])} is computed with on its way to a product"
    return "" if loaded.keys() & multiplied else "no product takes a tile as it is loaded"


def _descriptors(function: Function) -> dict[str, str]:
    return {name: kind for name, kind in function.parameters.items() if kind.startswith("tensordesc")}


def _argument(made: TritonKernels, text: str) -> str:
    """What the program calls the tensor of a parameter."""
    return made.block.arguments[int(text.removeprefix("a"))].name
