"""Loading generated source: it is parsed and checked here, at one place, before it is compiled and executed.

The check knows what the emitter writes and refuses everything else: imports, builtins and attributes are listed, names
must be the file's own. So a kernel file that was tampered with cannot reach files, processes or the interpreter.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from blockc.codegen.numpy_helpers import HELPERS
from blockc.codegen.numpy_ops import POWER_OF_TWO, SPELLINGS
from blockc.codegen.numpy_values import element_dtype
from blockc.ir.dtypes import DTYPES

_MODULES = frozenset({"itertools", "math", "ml_dtypes", "numpy", "torch"})
_NAMES = frozenset(
    {
        ("collections", "deque"),
        ("contextlib", "contextmanager"),
        ("concurrent.futures", "ThreadPoolExecutor"),
        ("functools", "cache"),
        ("os", "cpu_count"),
        ("os", "getpid"),
        ("threading", "Lock"),
        ("threadpoolctl", "ThreadpoolController"),
    }
)
_BUILTINS = frozenset(
    {
        *("AttributeError", "ImportError", "IndexError", "ValueError", "__name__"),
        *("bool", "float", "int", "len", "max", "min", "print", "range", "zip"),
    }
)
# What kernels and `launch` call besides the spellings of operators and the helper functions.
_STRUCTURE = """
    T add any arange array asarray astype bool_ copyto default_rng divide dtype empty equal errstate exp fill finfo inf
    int8 integers items limit matmul max maximum min minimum multiply nan not_equal ones product random reduce reduceat
    reshape shape sqrt standard_normal subtract tolist transpose vecdot
"""
_EVERY = (*SPELLINGS.values(), POWER_OF_TWO)
_ATTRIBUTES = frozenset(
    {
        *_STRUCTURE.split(),
        *(element_dtype(name) for name in DTYPES),
        "int64",
        *re.findall(r"\.([A-Za-z]\w*)", " ".join(HELPERS.values())),
        *re.findall(
            r"\.([A-Za-z]\w*)",
            " ".join(part for s in (*SPELLINGS.values(), POWER_OF_TWO) for part in (*s.calls, s.number)),
        ),
    }
)


_Plain = ast.Import | ast.ImportFrom | ast.Assign


class UnsafeSourceError(Exception):
    """Generated source contains what no emitter writes: a fault of ours, or a file that was tampered with."""


_TRITON_IMPORTS = frozenset({"functools", "torch", "triton", "triton.language", "triton.tools.tensor_descriptor"})


def import_kernels(path: str) -> ModuleType:
    """A file of Triton kernels as a module: Triton reads functions from files. UnsafeSourceError if it has anything but
    imports of torch and triton and functions."""
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef():
                continue
            case ast.Import(names=names) if {alias.name for alias in names} <= _TRITON_IMPORTS:
                continue
            case ast.ImportFrom(module=origin) if origin in _TRITON_IMPORTS:
                continue
            case _:
                raise UnsafeSourceError(f"line {node.lineno} of a kernel file is neither an import nor a function")
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(source: str) -> Callable[..., Any]:
    """The `launch` function of a generated module. UnsafeSourceError if the source is not of the expected form."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UnsafeSourceError(str(error)) from None
    nodes = list(ast.walk(tree))
    own = set(_own_names(nodes))
    for problem in _problems(tree, nodes, own):
        raise UnsafeSourceError(problem)
    if "launch" not in own:
        raise UnsafeSourceError("there is no function `launch`")
    name = f"<blockc kernel {sha256(source.encode()).hexdigest()[:12]}>"
    # So that tracebacks and debuggers show the generated lines.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "blockc_kernel"}
    exec(compile(tree, name, "exec"), namespace)  # noqa: S102 - checked above
    launch: Callable[..., Any] = namespace["launch"]
    return launch


def _own_names(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Every name that the file binds."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Import(names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case _:
                pass


def _problems(tree: ast.Module, nodes: Sequence[ast.AST], own: set[str]) -> Iterator[str]:
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef | ast.If | _Plain) and not _is_optional_import(statement):
            yield f"line {statement.lineno}: a {type(statement).__name__} at the top"
    for name in sorted(own):
        if name.startswith("__") or hasattr(builtins, name):
            yield f"`{name}` is bound to something else"
    for node in nodes:
        match node:
            case ast.Import(names):
                yield from (_refused(node, alias.name) for alias in names if alias.name not in _MODULES)
            case ast.ImportFrom(module, names, level):
                full = [(module, alias.name) for alias in names]
                yield from (_refused(node, f"{pair[0]}.{pair[1]}") for pair in full if level or pair not in _NAMES)
            case ast.Name(id=name) if name not in own and name not in _BUILTINS:
                yield _refused(node, name)
            case ast.Attribute(attr=name) if name not in _ATTRIBUTES:
                yield _refused(node, name)
            case ast.ClassDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.Global() | ast.Nonlocal() | ast.Delete():
                if not isinstance(node, ast.Delete) or not all(isinstance(target, ast.Name) for target in node.targets):
                    yield f"line {node.lineno}: a {type(node).__name__}"
            case _:
                pass


def _is_optional_import(statement: ast.stmt) -> bool:
    """True for an import with what happens where the library is not installed."""
    match statement:
        case ast.Try(body, [ast.ExceptHandler(body=otherwise)], [], []):
            return all(isinstance(inner, _Plain) for inner in (*body, *otherwise))
        case _:
            return False


def _refused(node: ast.AST, name: str) -> str:
    return f"line {getattr(node, 'lineno', 0)}: `{name}` is not allowed"
