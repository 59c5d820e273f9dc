"""The rules of the architecture, checked on the syntax trees of all modules. Each check fails on planted mistakes."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "blockc"


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, and whether it is a package's `__init__`."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the tree."""
        return tuple(ast.walk(self.tree))

    @cached_property
    def imports(self) -> tuple[tuple[str, int], ...]:
        """Every name that is imported, dotted, with its line; for `from a import b` it is a.b."""
        return tuple(imports(self.nodes))

    @cached_property
    def late_imports(self) -> frozenset[tuple[str, int]]:
        """The imports inside functions and under TYPE_CHECKING."""
        late = [node for node in self.nodes if isinstance(node, ast.FunctionDef) or is_checking(node)]
        return frozenset(found for node in late for found in imports(ast.walk(node)))

    @property
    def layer(self) -> str:
        """The package that it is in: "ir", "passes", "codegen", or "" for the top."""
        parts = self.name.split(".")
        inner = parts[1:] if self.is_package else parts[1:-1]
        return inner[0] if inner else ""


@cache
def modules() -> tuple[Module, ...]:
    """All modules of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(found)


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """What nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def is_checking(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


# --- the checks: each yields what is wrong in a module ---------------------------------------------------------------

ALLOWED = {
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "codegen": {"ir", "codegen"},
    "machines": {"ir", "machines", "errors", "files", "names"},
}
INSPECTING = ("blockc.cli", "blockc.kernel", "blockc.gpu_kernel")  # what may import the inspector, and commands


def downward(module: Module) -> Iterator[str]:
    """Imports point down: blockc to codegen, passes and machines, these to ir, ir to nothing. Machines use what reads
    files and reports problems as well. The inspector imports everything, and commands it; kernels do so late."""
    late = module.late_imports
    for name, line in module.imports:
        if name.startswith("."):
            yield f"{line}: relative import {name}"
        parts = name.split(".")
        if parts[:2] == ["blockc", "inspector"] and module.layer != "inspector":
            known = module.name in INSPECTING or module.name.endswith("_command")
            if not known or (module.name != "blockc.cli" and (name, line) not in late):
                yield f"{line}: imports {name}"
        if (
            parts[0] == "blockc"
            and module.layer in ALLOWED
            and (len(parts) < 2 or parts[1] not in ALLOWED[module.layer])
        ):
            yield f"{line}: {module.layer} imports {name}"


def layered(module: Module) -> Iterator[str]:
    """The packages inside blockc are imported under their names in it."""
    yield from (f"{line}: {name}" for name, line in module.imports if name.split(".")[0] in ALLOWED)


OWNERS = {
    "networkx": ("blockc.ir.graph",),
    "sympy": (
        "blockc.passes.cost",
        "blockc.passes.machine_cost",
        "blockc.passes.pivot_attempt",
        "blockc.passes.pivot_symbols",
        "blockc.inspector.explain_text",
        "blockc.inspector.explanation",
    ),
    "click": (
        "blockc.bench_command",
        "blockc.cache_command",
        "blockc.cli",
        "blockc.lint_command",
        "blockc.options",
        "blockc.printing",
        "blockc.report_command",
        "blockc.targets_command",
        "blockc.tune_command",
        "blockc.why_not_command",
    ),
    "platformdirs": ("blockc.cache", "blockc.machines.loading"),
    "lark": ("blockc.parsing", "blockc.syntax_errors", "blockc.ir.text"),
}
LATE_OWNERS = ("blockc.codegen", "blockc.eager_torch", "blockc.integrations", "blockc.machines.calibrating")


def owned(module: Module) -> Iterator[str]:
    """A library is imported in the modules that own it; torch and triton in codegen, eager_torch,
    integrations and machines/calibrating, and late."""
    late = module.late_imports
    for name, line in module.imports:
        library = name.split(".")[0]
        if library in OWNERS and module.name not in OWNERS[library]:
            yield f"{line}: {library}"
        if library in ("torch", "triton"):
            if not module.name.startswith(LATE_OWNERS):
                yield f"{line}: {library}"
            elif (name, line) not in late:
                yield f"{line}: {library} is imported early"


def unevaluated(module: Module) -> Iterator[str]:
    """Text becomes code in codegen/loader.py only."""
    for node in module.nodes:
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                if module.name != "blockc.codegen.loader":
                    yield f"{node.lineno}: {name}"
            case ast.Import(names) if {"pickle", "marshal", "shelve", "yaml"} & {alias.name for alias in names}:
                yield f"{node.lineno}: {names[0].name}"
            case _:
                pass


def narrow(module: Module) -> Iterator[str]:
    """Nothing catches everything, except the top of the command line once."""
    broad = [
        node
        for node in module.nodes
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    ]
    allowed = 1 if module.name == "blockc.cli" else 0
    yield from (f"{node.lineno}: a broad except" for node in broad[allowed:])


NAMED_ALIKE = {"blockc.__main__"}


def distinct(module: Module) -> Iterator[str]:
    """No module has the name of a standard module or of a dependency."""
    taken = sys.stdlib_module_names | {"numpy", "networkx", "sympy", "lark", "click", "torch", "triton", "ml_dtypes"}
    last = module.name.split(".")[-1]
    vague = {"utils", "util", "helpers", "misc", "common_utils"}
    if last in taken | vague and module.name not in NAMED_ALIKE:
        yield f"0: {last}"


def placeless(module: Module) -> Iterator[str]:
    """No path of a machine."""
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"""["' =(](/(home|work|root|tmp|usr|opt|Users|var)/|[A-Z]:\\\\)""", line):
            yield f"{number}: {line.strip()}"


VARIABLES = {"NO_COLOR", "BLOCKC_CACHE", "BLOCKC_DEBUG"}


def explicit(module: Module) -> Iterator[str]:
    """Behaviour does not come from environment variables, but for three."""
    for node in module.nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(value=name), *_]):
                pass
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ")), args=[ast.Constant(value=name), *_]):
                pass
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=name)):
                pass
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {alias.name for alias in names}:
                name = "imported from os"
            case ast.Attribute(attr="environ") if not _is_read(module, node):
                name = "all of them"
            case _:
                continue
        if name not in VARIABLES:
            yield f"{node.lineno}: {name!r}"


def _is_read(module: Module, attribute: ast.Attribute) -> bool:
    """True if the attribute `environ` is only asked for one constant name."""
    for node in module.nodes:
        match node:
            case ast.Subscript(value=inner, slice=ast.Constant()) if inner is attribute:
                return True
            case ast.Call(func=ast.Attribute(value=inner), args=[ast.Constant(), *_]) if inner is attribute:
                return True
            case _:
                pass
    return False


def stateless(module: Module) -> Iterator[str]:
    """No statement `global`."""
    yield from (f"{node.lineno}: global" for node in module.nodes if isinstance(node, ast.Global))


def described(module: Module) -> Iterator[str]:
    """Every module says in its first line what it is."""
    if not (ast.get_docstring(module.tree) or "").strip():
        yield "1: no docstring"


CHECKS: dict[Callable[[Module], Iterator[str]], tuple[Module, ...]] = {
    downward: (
        Module("blockc.ir.planted", "from blockc.passes import fuse"),
        Module("blockc.ir.planted", "import blockc.driver"),
        Module("blockc.ir.planted", "from blockc import driver"),
        Module("blockc.passes.planted", "from blockc.codegen.loader import load"),
        Module("blockc.passes.rules.planted", "def f():\n    from blockc.errors import Problem"),
        Module("blockc.codegen.planted", "from blockc.passes.cost import cost"),
        Module("blockc.codegen", "from blockc import driver", is_package=True),
        Module("blockc.machines.planted", "from blockc.passes.cost import cost"),
        Module("blockc.planted", "from . import driver"),
        Module("blockc.partition", "def f():\n    from blockc.inspector.explanation import explain_for"),
        Module("blockc.kernel", "from blockc.inspector.explanation import explain_for"),
    ),
    layered: (Module("blockc.planted", "import ir"), Module("blockc.planted", "from passes.fuse import fuse")),
    owned: (
        Module("blockc.passes.fuse", "import networkx as nx"),
        Module("blockc.ir.block", "from sympy import Symbol"),
        Module("blockc.driver", "import click"),
        Module("blockc.driver", "def f():\n    import torch"),
        Module("blockc.integrations", "import torch"),
        Module("blockc.codegen.planted", "import triton.language as tl"),
    ),
    unevaluated: (
        Module("blockc.planted", "eval('1')"),
        Module("blockc.planted", "exec(text)"),
        Module("blockc.planted", "import pickle"),
    ),
    narrow: (
        Module("blockc.planted", "try:\n    f()\nexcept Exception:\n    pass"),
        Module("blockc.planted", "try:\n    f()\nexcept (ValueError, BaseException):\n    pass"),
        Module("blockc.planted", "try:\n    f()\nexcept:\n    pass"),
        Module("blockc.cli", "try:\n    f()\nexcept Exception:\n    pass\ntry:\n    f()\nexcept Exception:\n    pass"),
    ),
    distinct: (
        Module("blockc.types", ""),
        Module("blockc.codegen.triton", ""),
        Module("blockc.utils", ""),
    ),
    placeless: (Module("blockc.planted", 'open("/home/someone/file")'), Module("blockc.planted", "x = '/opt/x'")),
    explicit: (
        Module("blockc.planted", "import os\nos.environ['HOME']"),
        Module("blockc.planted", "import os\nos.environ.get('BLOCKC_FAST')"),
        Module("blockc.planted", "import os\nos.getenv('BLOCKC_FAST')"),
        Module("blockc.planted", "import os\nf(os.environ)"),
        Module("blockc.planted", "from os import environ"),
    ),
    stateless: (Module("blockc.planted", "def f():\n    global x\n    x = 1"),),
    described: (Module("blockc.planted", "x = 1"),),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_follows_the_rule(check: Callable[[Module], Iterator[str]]) -> None:
    assert [f"{module.name}:{problem}" for module in modules() for problem in check(module)] == []


@pytest.mark.parametrize(
    ("check", "planted"),
    [(check, planted) for check, planted_ones in CHECKS.items() for planted in planted_ones],
    ids=lambda value: value.__name__ if callable(value) else value.text[:30],
)
def test_the_check_finds_a_planted_mistake(check: Callable[[Module], Iterator[str]], planted: Module) -> None:
    assert list(check(planted)) != []


def test_all_modules_are_looked_at() -> None:
    names = {module.name for module in modules()}
    assert {"blockc", "blockc.cli", "blockc.ir", "blockc.passes.rules.extend_map", "blockc.codegen.loader"} <= names


def test_files_of_the_repository_name_no_machine() -> None:
    """Documents, tests and scripts are free of absolute paths of a machine as well."""
    texts = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / ".ci" / "run", *(ROOT / "benchmarks").glob("*.py")]
    pattern = re.compile(r"(?<![\w.])/(home|work|root|Users)/")
    assert [str(path) for path in texts if pattern.search(path.read_text(encoding="utf-8"))] == []
