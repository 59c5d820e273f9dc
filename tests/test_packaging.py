"""The wheel and the source archive: what they hold, and that the installed package works where the checkout is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import blockc

ROOT = Path(__file__).parent.parent
PROGRAM = "program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }\n"


@dataclass(frozen=True)
class Built:
    """The two archives, and the folder they were built from."""

    wheel: Path
    source: Path
    checkout: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds offline, from a copy, so that the checkout stays as it is."""
    checkout = tmp_path_factory.mktemp("checkout") / "blockc"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=unwanted)
    for link in ("ir", "passes", "codegen"):
        if not (checkout / link).exists():  # a checkout without links works as well; here they are what could go wrong
            (checkout / link).symlink_to(Path("blockc") / link)
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(checkout)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,), (source,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return Built(wheel, source, checkout)


def package_files() -> set[str]:
    """Every file of the package, from the root of the checkout."""
    wanted = (path for path in (ROOT / "blockc").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in wanted}


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    assert len(names) == len(set(names))
    assert {name for name in names if not name.startswith(f"blockc-{blockc.__version__}.dist-info/")} == package_files()


def test_the_source_archive_holds_the_package_and_how_to_build_it(built: Built) -> None:
    top = f"blockc-{blockc.__version__}"
    with tarfile.open(built.source) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    assert [member.name for member in members if not member.isfile()] == []
    names = {member.name.removeprefix(f"{top}/") for member in members}
    metadata = {name for name in names if name.startswith("blockc.egg-info/")}
    build = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert names - metadata - build == package_files()


def test_all_packages_are_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "blockc").rglob("__init__.py")
    }
    assert set(listed) == found


def test_the_version_is_one() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == blockc.__version__


def installed(built: Built, folder: Path) -> Path:
    """The wheel, unpacked the way an installer does it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(built.wheel)], check=True, capture_output=True, timeout=120)
    return folder


def test_the_installed_package_compiles_and_runs(built: Built, tmp_path: Path) -> None:
    site = installed(built, tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "double.blk").write_text(PROGRAM)
    for arguments in (
        ["check", "double.blk"],
        ["run", "double.blk", "--dim", "m=5"],
        ["show", "double.blk", "--stage", "plan"],
    ):
        # -P keeps the current folder out of the path; only the unpacked wheel is in it.
        command = [sys.executable, "-P", "-m", "blockc", *arguments]
        result = subprocess.run(
            command, cwd=elsewhere, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
    code = "import blockc, os; print(os.path.dirname(blockc.__file__))"
    place = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=elsewhere, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert place.stdout.strip() == str(site / "blockc")


@pytest.mark.parametrize("name", ["ir", "passes", "codegen"])
def test_the_links_at_the_root_are_no_packages(built: Built, name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    result = subprocess.run(command, cwd=built.checkout, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"this is the package blockc.{name}: import it under that name" in result.stderr


def test_everything_works_without_the_links(built: Built, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(built.checkout, checkout, symlinks=True)
    for name in ("ir", "passes", "codegen"):
        (checkout / name).unlink()
    command = [sys.executable, "-m", "blockc", "run", "examples/attention.blk", "--dim", "m=9", "--dim", "n=9"]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_commands_of_the_entry_points_exist(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        entry_points = archive.read(f"blockc-{blockc.__version__}.dist-info/entry_points.txt").decode()
    assert entry_points.split() == ["[console_scripts]", "blockc", "=", "blockc.cli:main"]
