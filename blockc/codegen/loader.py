"""Loading generated source: it is parsed and checked here, at one place, before it is compiled and executed."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

_MODULES = frozenset({"itertools", "math", "ml_dtypes", "numpy"})
_NAMES = frozenset(
    {
        ("collections", "deque"),
        ("concurrent.futures", "ThreadPoolExecutor"),
        ("functools", "cache"),
        ("os", "cpu_count"),
        ("threadpoolctl", "ThreadpoolController"),
    }
)
# What could reach files, processes or the interpreter itself through builtins or NumPy.
_FORBIDDEN = frozenset(
    {
        *("eval", "exec", "compile", "open", "input", "breakpoint", "globals", "locals", "vars", "getattr", "setattr"),
        *("delattr", "memoryview", "load", "loads", "save", "savez", "savez_compressed", "savetxt", "loadtxt"),
        *("genfromtxt", "fromfile", "tofile", "memmap", "fromregex", "dump", "dumps", "DataSource", "ctypeslib", "f2py"),
        *("ctypes", "lib", "core", "testing", "distutils", "data", "frombuffer", "open_memmap"),
    }
)


class UnsafeSourceError(Exception):
    """Generated source contains what no emitter writes: a fault of ours, or a file that was tampered with."""


def load(source: str) -> Callable[..., Any]:
    """The `launch` function of a generated module. UnsafeSourceError if the source is not of the expected form."""
    tree = ast.parse(source)
    for problem in _problems(tree):
        raise UnsafeSourceError(problem)
    name = f"<blockc kernel {sha256(source.encode()).hexdigest()[:12]}>"
    # So that tracebacks and debuggers show the generated lines.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "blockc_kernel"}
    exec(compile(tree, name, "exec"), namespace)  # noqa: S102 - checked above
    launch = namespace.get("launch")
    if not callable(launch):
        raise UnsafeSourceError("there is no function `launch`")
    result: Callable[..., Any] = launch
    return result


def _problems(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign | ast.If | ast.Expr):
            yield f"line {statement.lineno}: a {type(statement).__name__} at the top"
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (_refused(node, alias.name) for alias in names if alias.name not in _MODULES)
            case ast.ImportFrom(module, names, level):
                yield from (
                    _refused(node, f"{module}.{alias.name}")
                    for alias in names
                    if level or (module, alias.name) not in _NAMES
                )
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                if (name.startswith("_") and name not in ("_", "__name__")) or name in _FORBIDDEN:
                    yield _refused(node, name)
            case ast.ClassDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.Global() | ast.Nonlocal():
                yield f"line {node.lineno}: a {type(node).__name__}"
            case _:
                pass


def _refused(node: ast.AST, name: str) -> str:
    return f"line {getattr(node, 'lineno', 0)}: `{name}` is not allowed"
