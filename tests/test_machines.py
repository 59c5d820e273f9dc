"""Machine files: every message by a bad file, all problems at once, units, the shipped machines, and hostile input.

The normal run takes 1,000 mutations of the shipped files; more, or others, come from

    python tests/test_machines.py --count 100000 --seed 7
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_files import GOOD, SECOND_UNIT, THIRD, WAYS, WITH_MOVES, changed, move

from blockc import cli
from blockc.errors import BlockcError, LimitError, Problem, visible
from blockc.ir.machine import Move
from blockc.machines import fields, loading, quantities
from blockc.machines.reading import LARGEST_FILE, read_machine
from blockc.machines.writing import machine_text

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "blockc" / "machines").glob("*.toml"))
COUNT, SEED, SECONDS = 1_000, 20261121, 2.0


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the machine files of whoever runs it."""
    monkeypatch.setattr(loading, "user_folder", lambda: tmp_path / "settings" / "machines")


def problems(text: str) -> tuple[Problem, ...]:
    """What is wrong with a machine file."""
    with pytest.raises(BlockcError) as caught:
        read_machine(text, "bad.toml")
    return caught.value.problems


# --- every message, by a bad file -------------------------------------------------------------------------------------

# By code: what is replaced in the good file, by what; a part of the message, line and column, a part of the hint.
BAD: dict[str, dict[str, tuple[str, str, str, tuple[int, int], str]]] = {
    "E0201": {  # no TOML
        "quantity without quotes": ('"1 GiB"', "1 GiB", "this is not TOML: expected newline", (8, 14), "in quotes"),
        "word without quotes": ('"small"', "small", "invalid value", (1, 8), "in quotes"),
        "no value": ("units = 4", "units =", "invalid value", (3, 8), "in quotes"),
        "no equals sign": ("units = 4", "units 4", "expected '=' after a key", (3, 7), "key = value"),
        "key twice": ("units = 4", "units = 4\nunits = 5", "cannot overwrite a value", (4, 1), "there already"),
        "key twice, long value": (
            "units = 4",
            'units = [\n{ a.b = 1, "a".b = """\n""" }]',
            "duplicate inline table key 'b'",
            (4, 16),
            "there already",
        ),
        "key twice at the end": ("tile = [16, 16, 16]", "rate = 1", "duplicate inline table key", (27, 36), "already"),
        "open string": ('"small"', '"small', "illegal character", (1, 14), "toml.io"),
        "open list": ('"inner", "inner"]', '"inner", "inner"', "unclosed array", (26, 1), "] or a comma"),
        "open header": ("[[tier]]", "[[tier]", "expected ']]'", (6, 7), ""),
        "table twice": ("[[tier]]", "[x]\n[x]\n[[tier]]", "cannot declare", (7, 1), "there already"),
        "wrong escape": ('"small"', '"\\q"', "unescaped", (1, 11), ""),
        "one tier as a table": ("[[tier]]", "[tier]", "cannot overwrite", (14, 1), "[[ ]]"),
    },
    "E0202": {  # unknown keys
        "misspelt key": ("dispatch", "dispach", "the machine has no field `dispach`", (4, 1), "`dispatch`"),
        "strange key": ("units = 4", "units = 4\nxyzzy = 1", "no field `xyzzy`", (4, 1), "known: `name`"),
        "misspelt key of a tier": ("capacity", "capcity", "this tier has no field `capcity`", (8, 1), "`capacity`"),
        "misspelt table": ("[[compute]]", "[[computer]]", "no field `computer`", (23, 1), "`compute`"),
        "misspelt operation": ("matmul.f16", "matmull.f16", "no field `matmull`", (27, 1), "`matmul`"),
        "misspelt key of a rate": ("tile =", "tiles =", "`matmul.f16` has no field `tiles`", (27, 36), "`tile`"),
        "quoted key": ("units = 4", 'units = 4\n"a b" = 1', "no field `a b`", (4, 1), "known"),
    },
    "E0203": {  # missing
        "no name": ('name = "small"\n', "", "the machine has no `name`", (1, 1), 'name = "..."'),
        "no capacity": ('capacity = "1 GiB"\n', "", "this tier has no `capacity`", (6, 1), 'capacity = "192 KiB"'),
        "no scope": ('scope = "unit"\n', "", "this tier has no `scope`", (14, 1), '"device" or "unit"'),
        "no rate": ('rate = "2 TFLOP/s", ', "", "`matmul.f16` has no `rate`", (27, 8), "add rate"),
        "nothing special": ('special.f32 = { rate = "100 GOP/s" }\n', "", "does `special`", (23, 1), "special.f32"),
    },
    "E0204": {  # of another type
        "text as number": ("units = 4", 'units = "4"', "must be a whole number, not text", (3, 9), "no quotes"),
        "fraction": ("units = 4", "units = 4.5", "must be a whole number, not a number", (3, 9), "decimal point"),
        "truth as number": ("units = 4", "units = true", "not true or false", (3, 9), ""),
        "number as description": (
            "units = 4",
            "units = 4\ndescription = 5",
            "must be text, not a whole number",
            (4, 15),
            "",
        ),
        "list as scope": ('"device"', '["device"]', "one of `device` and `unit`, not a list", (11, 9), "in quotes"),
        "number as name": ('"small"', "5", "`name` must be a name, not a whole number", (1, 8), "in quotes"),
        "list as capacity": ('"1 GiB"', '["1 GiB"]', "must be a size, not a list", (8, 12), "192 KiB"),
        "date as dispatch": ('"4 us"', "2026-11-21", "must be a time, not a date", (4, 12), "4 us"),
        "tiers as a number": (
            "units = 4",
            "units = 4\nmove = 3",
            "`move` must be a list of tables",
            (4, 1),
            "[[move]]",
        ),
        "number in a list": ("units = 4", "units = 4\nmove = [3]", "here is a whole number", (4, 9), "[[move]]"),
        "operands as text": ('["inner", "inner"]', '"inner"', "a list of 1 or 2, not text", (25, 12), '["L0A"'),
        "number among operands": ('["inner", "inner"]', '["inner", 3]', "must be a name", (25, 22), ""),
        "rate as text": (
            '{ rate = "1 TFLOP/s" }',
            '"1 TFLOP/s"',
            "`vector.f32` must be a table",
            (28, 14),
            "vector.f32",
        ),
        "operation as text": ("matmul.f16 =", 'matmul = "x" #', "`matmul` must have rates by type", (27, 10), "write"),
    },
    "E0205": {  # units
        "no unit": ('"1 GiB"', '"1"', "`capacity` has no unit", (8, 12), '"192 KiB"; units: B, kB'),
        "plain number": ('"1 GiB"', "1024", "`capacity` needs a unit", (8, 12), "units: B, kB"),
        "plain NaN": ('"4 us"', "nan", "`dispatch` needs a unit", (4, 12), "ns, us, ms, s"),
        "KB": ('"64 KiB"', '"64 KB"', "is in `KB`", (16, 12), "`kB` or `KiB`"),
        "bytes as bandwidth": ('"10 GB/s"', '"10 GB"', "no unit of a bandwidth", (9, 8), "`GB/s`"),
        "TFLOPS": ('"2 TFLOP/s"', '"2 TFLOPS"', "is in `TFLOPS`", (27, 23), "`TFLOP/s`"),
        "minutes": ('"4 us"', '"4 min"', "is in `min`", (4, 12), "units: ns, us"),
        "unit alone": ('"1 GiB"', '"GiB"', "does not start with a number", (8, 12), ""),
        "enormous exponent": (
            '"5 GB/s"',
            '"1e400 GB/s"',
            "`write` starts with `1e400`, which is no number",
            (10, 9),
            "4e3",
        ),
        "underscore": ('"5 GB/s"', '"1_0 GB/s"', "`write` starts with `1_0`, which is no number", (10, 9), "1.5"),
        "comma": ('"1 GiB"', '"1,5 GiB"', "starts with `1,5`, which is no number", (8, 12), "1.5"),
        "blank in a number": ('"1 GiB"', '"1 000 B"', "starts with `1 000`, which is no number", (8, 12), ""),
        "many digits": ('"1 GiB"', f'"{"1" * 21} B"', "which is no number", (8, 12), "at most 20 digits"),
        "NaN as text": ('"1 GiB"', '"nan GiB"', "does not start with a number", (8, 12), ""),
    },
    "E0206": {  # impossible values
        "enormous number": ("units = 4", "units = " + "9" * 450, "`units` is impossible", (3, 9), "from 1 to"),
        "zero": ('"1 GiB"', '"0 B"', "`capacity` must be greater than zero", (8, 12), ""),
        "negative": ('"10 GB/s"', '"-1 GB/s"', "`read` must be greater than zero", (9, 8), ""),
        "negative time": ('"4 us"', '"-4 us"', "`dispatch` must not be negative", (4, 12), ""),
        "products of no kernels": (
            "units = 4",
            'units = 4\nproducts = "torch"',
            "`products` is for machines whose backend is numpy",
            (4, 12),
            "backend is none",
        ),
        "too large": ('"1 GiB"', '"9e30 GiB"', "`capacity` is too large", (8, 12), "at most 1048576 TiB"),
        "too long": ('"4 us"', '"2 s"', "`dispatch` is too large", (4, 12), "at most 1 s"),
        "parts of a byte": ('"64 KiB"', '"1.1 KiB"', "not a whole number of bytes", (16, 12), ""),
        "no units": ("units = 4", "units = 0", "`units` is impossible", (3, 9), "from 1 to 1,048,576"),
        "infinite": ("units = 4", "units = inf", "a whole number, not inf", (3, 9), ""),
        "NaN": ("units = 4", "units = nan", "a whole number, not nan", (3, 9), ""),
        "odd alignment": ('"32 B"', '"48 B"', "`alignment` must be a power of two", (21, 13), ""),
        "wide alignment": ('"32 B"', '"128 KiB"', "`alignment` is larger than the tier", (21, 13), ""),
        "too many buffers": ('"32 B"', '"32 B"\nbuffers = 17', "`buffers` is impossible", (22, 11), "from 1 to 16"),
        "two sizes of a tile": ("[16, 16, 16]", "[16, 16]", "must have 3 values, not 2", (27, 43), "[16, 16, 16]"),
        "zero in a tile": ("[16, 16, 16]", "[16, 0, 16]", "`tile` is impossible", (27, 48), "from 1"),
        "tile that does not fit": (
            "[16, 16, 16]",
            "[128, 128, 128]",
            "does not fit in tier `inner`",
            (27, 43),
            "131,072",
        ),
        "name with a blank": (
            '"small"',
            '"very small"',
            "`name` cannot be `very small`",
            (1, 8),
            "starts with a letter",
        ),
        "long description": (
            "units = 4",
            'units = 4\ndescription = "' + "x" * 201 + '"',
            "one line",
            (4, 15),
            "comments",
        ),
    },
    "E0207": {  # unknown names
        "no library": (
            "units = 4",
            'units = 4\nproducts = "mkl"',
            "`products` cannot be `mkl`",
            (4, 12),
            "known: `numpy` and `torch`",
        ),
        "no duplex": (
            '"32 B"',
            '"32 B"\nduplex = "halb"',
            "`duplex` cannot be `halb`",
            (22, 10),
            "did you mean `half`",
        ),
        "backend": ('"none"', '"trition"', "`backend` cannot be `trition`", (2, 11), "`triton`"),
        "far backend": ('"none"', '"cuda"', "`backend` cannot be `cuda`", (2, 11), "known: `numpy`"),
        "kind": ('"scratchpad"', '"ram"', "`kind` cannot be `ram`", (12, 8), "`cache`"),
        "type": ("matmul.f16", "matmul.fp16", "there is no type `fp16`", (27, 8), "`f16`"),
        "operand tier": ('["inner", "inner"]', '["inner", "iner"]', "no tier `iner`", (25, 22), "`inner`"),
        "accumulator tier": (
            'accumulator = "inner"',
            'accumulator = "L0C"',
            "no tier `L0C`",
            (26, 15),
            "the tiers are",
        ),
    },
    "E0208": {  # names twice
        "tier twice": ('"inner"\ncap', '"outer"\ncap', "another tier `outer`", (15, 8), "in line 7"),
        "compute unit twice": (
            "[[compute]]",
            SECOND_UNIT + "[[compute]]",
            "another compute `core`",
            (30, 8),
            "in line 24",
        ),
    },
    "E0209": {  # order
        "larger inside": ('"64 KiB"', '"2 GiB"', "`inner` is larger than `outer`", (16, 12), "outermost"),
        "slower inside": ('"20 GB/s"', '"1 GB/s"', "`inner` is slower to read than `outer`", (17, 8), "outermost"),
        "first tier of a unit": ('"device"', '"unit"', "the first tier must belong to the device", (11, 9), "inputs"),
    },
}


@pytest.mark.parametrize(("code", "name"), [(code, name) for code, cases in BAD.items() for name in cases])
def test_a_bad_file_gives_one_message_with_its_place(code: str, name: str) -> None:
    old, new, message, place, hint = BAD[code][name]
    (problem,) = problems(changed((old, new)))
    assert problem.span is not None
    assert (problem.code, (problem.span.line, problem.span.column)) == (code, place)
    assert message in problem.message
    assert hint in problem.hint


def test_every_code_has_a_bad_file() -> None:
    codes = {value for name, value in vars(fields).items() if name.isupper() and isinstance(value, str)}
    assert codes == {f"E02{number:02}" for number in range(1, 11)}
    assert codes - set(BAD) == {fields.WAY}  # moves come below


MOVES = {
    "unknown end": (WAYS + move("outer", "iner"), "E0207", "there is no tier `iner`", "`inner`"),
    "to itself": (WAYS + move("inner", "inner"), "E0210", "from `inner` to itself", "two different ends"),
    "twice": (WAYS + move("outer", "inner"), "E0208", "another move from `outer` to `inner`", "in line 39"),
    "faster than read": (WAYS + move("outer", "results", "15 GB/s"), "E0206", "than `outer` can be read", ""),
    "faster than written": (
        move("outer", "inner") + move("results", "outer", "6 GB/s"),
        "E0206",
        "`outer` can be written",
        "",
    ),
    "no way there": (
        move("results", "outer") + move("inner", "outer"),
        "E0210",
        "from `outer` to tier `inner`",
        'to = "inner"',
    ),
    "no way back": (
        move("outer", "inner") + move("inner", "outer"),
        "E0210",
        "from tier `results` back",
        'from = "results"',
    ),
    "nowhere": (move("outer", "inner") + move("inner", "outer"), "E0210", "nothing gets", ""),
    "no end": (WAYS + '\n[[move]]\nfrom = "outer"\nbandwidth = "1 GB/s"\n', "E0203", "this move has no `to`", ""),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_bad_move_has_its_message(name: str) -> None:
    moves, code, message, hint = MOVES[name]
    found = problems(WITH_MOVES + moves)
    assert any(problem.code == code and message in problem.message and hint in problem.hint for problem in found), found
    assert len(found) == (2 if name == "no way there" else 1)


def test_computing_counts_as_a_way_for_data() -> None:
    machine = read_machine(WITH_MOVES + WAYS)  # `results` is reached by computing, `inner` left by it
    assert machine.moves == (Move("outer", "inner", 1e9, 1), Move("results", "outer", 1e9, 1))


def test_a_tier_of_the_device_is_not_inside_one_of_a_unit() -> None:
    text = changed(('scope = "unit"', 'scope = "device"'), text=WITH_MOVES) + WAYS + move("results", "inner")
    assert read_machine(text).tiers[2].scope == "unit"
    third = THIRD.replace('"unit"', '"device"').replace('"20 GB/s"', '"100 GB/s"')
    (problem,) = problems(changed(("\n[[compute]]", third + "\n[[compute]]")))
    assert (problem.code, problem.message) == (
        "E0209",
        "tier `results` belongs to the device, but not `inner`, which is outside it",
    )


def test_all_problems_are_reported_at_once_in_the_order_of_the_text() -> None:
    text = changed(
        ('"small"', '"s m"'),
        ("units = 4\n", ""),
        ('"10 GB/s"', '"10 GB"'),
        ('"unit"', '"core"'),
        ('"32 B"', "32"),
        ('["inner", "inner"]', '["innner"]'),
        ("f16 =", "f17 ="),
        ("[16, 16, 16]", "[16]"),
    )
    found = problems(text)
    assert [problem.code for problem in found] == [
        "E0203",
        "E0206",
        "E0205",
        "E0207",
        "E0205",
        "E0207",
        "E0207",
    ]
    spans = [(problem.span.line, problem.span.column) for problem in found if problem.span]
    assert spans == sorted(spans)


def messages(text: str) -> list[str]:
    """What is wrong with a machine file, without places."""
    return [problem.message for problem in problems(text)]


def test_wrong_fields_hide_no_problem_between_tables() -> None:
    """A tier without a capacity, and a move and a compute unit that are wrong as well."""
    text = changed(('capacity = "1 GiB"\n', ""), ("units = 4", "units = 0"), ('"32 KiB"', '"1 KiB"'), text=WITH_MOVES)
    text = changed(("[16, 16, 16]", "[16, 32, 16]"), ('["inner", "inner"]', '["iner"]'), text=text)
    assert messages(text + move("outer", "inner") + move("results", "outr") + move("inner", "results")) == [
        "`units` is impossible",
        "this tier has no `capacity`",
        "there is no tier `iner`",
        "a tile of m=16, n=32, k=16 does not fit in tier `results`",
        "there is no tier `outr`",
    ]


def test_tiers_around_one_that_is_wrong_are_compared() -> None:
    third = THIRD.replace('"32 KiB"', '"2 GiB"').replace('"20 GB/s"', '"1 GB/s"')
    text = changed(('"64 KiB"', '"64"'), ('"20 GB/s"', "20"), ("\n[[compute]]", third + "\n[[compute]]"))
    assert messages(text) == [
        "`capacity` has no unit",
        "`read` needs a unit",
        "tier `results` is larger than `outer`, which is outside it",
        "tier `results` is slower to read than `outer`, which is outside it",
        "tier `results` is slower to write than `inner`, which is outside it",
    ]


def test_a_tier_that_is_wrongly_shared_is_not_called_slow_as_well() -> None:
    (message,) = messages(changed(("\n[[compute]]", THIRD.replace('"unit"', '"device"') + "\n[[compute]]")))
    assert message == "tier `results` belongs to the device, but not `inner`, which is outside it"
    (message,) = messages(
        changed(('"device"', '"unit"'), ('"unit"\nkind = "scratchpad"\nalign', '"device"\nkind = "cache"\nalign'))
    )
    assert message == "the first tier must belong to the device"


def test_a_tier_without_a_way_back_is_reported_beside_wrong_ends() -> None:
    """A wrong end may be meant as any tier, so only what is certain is reported."""
    ways = move("outer", "inner") + move("outer", "results")
    text = changed(('accumulator = "results"', 'accumulator = "resluts"'), text=WITH_MOVES)
    assert messages(text + ways + move("iner", "outer")) == [
        "there is no tier `resluts`",
        "there is no tier `iner`",
    ]
    assert messages(text + ways) == [
        "nothing gets from tier `results` back to `outer`",
        "there is no tier `resluts`",
    ]
    assert messages(WITH_MOVES + ways + move("results", "results")) == ["this move leads from `results` to itself"]


def test_misspelt_keys_hide_no_problem_of_their_values() -> None:
    text = changed(
        ('capacity = "64', 'capcity = "64'), ("[16, 16, 16]", "[256, 16, 256]"), ('"inner"\nmat', '"iner"\nmat')
    )
    text = changed(('name = "outer"', 'nam = "outer"'), ("[[compute]]", "[[computer]]"), text=text)
    assert messages(text) == [
        "this tier has no field `nam`",
        "this tier has no field `capcity`",
        "the machine has no field `computer`",
        "there is no tier `iner`",
        "a tile of m=256, n=16, k=256 does not fit in tier `inner`",
    ]


def test_what_misspelt_tables_leave_open_is_not_judged() -> None:
    one = changed(("[[tier]]", "[[tiers]]"))
    assert messages(one) == ["the machine has no field `tiers`"]
    moves = (WAYS + move("outer", "results")).replace("[[move]]", "[[mov]]", 1)
    assert messages(WITH_MOVES + moves) == ["the machine has no field `mov`"]
    tiers = "".join(THIRD.replace("results", f"tier{number}") for number in range(7))
    last = changed(("\n[[compute]]", tiers + "\n[[compute]]"), ('accumulator = "inner"', 'accumulator = "tier6"'))
    assert messages(last) == ["the machine cannot have 9 of `tier`"]


def test_units_may_leave_results_in_a_tier_of_the_device(tmp_path: Path) -> None:
    """A program runs on such a machine. Only a move inwards from a unit's tier to one of the device is wrong."""
    results = THIRD.replace('"unit"', '"device"')
    path, program = tmp_path / "shared.toml", str(ROOT / "examples" / "matmul_epilogue.blk")
    path.write_text(changed((THIRD, results), text=WITH_MOVES) + WAYS)
    assert [tier.scope for tier in loading.load_machine(str(path)).tiers] == ["device", "unit", "device"]
    sizes = [word for dim in ("m=20", "n=30", "k=8") for word in ("--dim", dim)]
    assert cli.main(("run", program, "--program", "matmul_relu", "--target", str(path), "--simulate", *sizes)) == 0
    inwards = changed((THIRD, results), text=WITH_MOVES) + WAYS + move("inner", "results")
    assert messages(inwards) == ["tier `results` belongs to the device, but not `inner`, which is outside it"]


def test_a_wrong_name_of_a_tier_is_not_reported_again_where_it_is_used() -> None:
    (problem,) = problems(changed(('name = "inner"', 'name = "in ner"')))
    assert (problem.code, problem.message) == ("E0206", "`name` cannot be `in ner`")


def test_a_machine_has_tiers_and_compute_units_in_numbers_that_can_be() -> None:
    head, _, rest = GOOD.partition("\n[[tier]]")
    tiers, _, compute = rest.partition("\n[[compute]]")
    first = tiers.partition("\n[[tier]]")[0]
    none, one = f"{head}\n[[compute]]{compute}", f"{head}\n[[tier]]{first}\n[[compute]]{compute}"
    idle = '\n[[compute]]\nname = "idle"\noperands = ["inner"]\naccumulator = "inner"\n'
    extra = [f'{idle.replace("idle", f"unit{number}")}vector.i8.rate = "1 OP/s"\n' for number in range(16)]
    expected = {
        none: ("E0203", "the machine has no tier"),
        one: ("E0206", "the machine cannot have 1 of `tier`"),
        f"{head}\n[[tier]]{tiers}": ("E0203", "the machine has no compute"),
        GOOD + idle: ("E0203", "this compute unit does nothing"),
        GOOD + "".join(extra): ("E0206", "the machine cannot have 17 of `compute`"),
    }
    for text, answer in expected.items():
        assert [(problem.code, problem.message) for problem in problems(text)] == [answer]


def test_tiers_that_are_no_chain_have_an_order_along_their_moves() -> None:
    ways = WAYS + move("inner", "results")
    assert read_machine(WITH_MOVES + ways).tiers[2].capacity == 32 * 1024
    (problem,) = problems(changed(('"32 KiB"', '"128 KiB"'), text=WITH_MOVES) + ways)
    message = "tier `results` is larger than `inner`, which is outside it"
    assert (problem.code, problem.message) == ("E0209", message)
    assert read_machine(changed(('"32 KiB"', '"128 KiB"'), text=WITH_MOVES) + WAYS)  # nothing moves between the two


def test_a_list_that_holds_more_than_tables_is_one_problem() -> None:
    head = GOOD.partition("\n[[tier]]")[0] + 'tier = [3, { name = "a" }, { name = "a" }]\n'
    compute = "\n[[compute]]" + GOOD.partition("\n[[compute]]")[2]
    found = [problem for problem in problems(head + compute) if "tier" in problem.message]
    assert [(problem.code, problem.message) for problem in found] == [
        ("E0204", "`tier` must be a list of tables, and here is a whole number")
    ]


def test_a_problem_has_a_caret_and_a_hint() -> None:
    with pytest.raises(BlockcError) as caught:
        read_machine(changed(('"64 KiB"', '"64 KB"')), "mine.toml")
    assert str(caught.value) == (
        "error[E0205]: `capacity` is in `KB`, which is no unit of a size\n"
        "  --> mine.toml:16:12\n"
        "   |\n"
        '16 | capacity = "64 KB"\n'
        "   |            ^^^^^^^ did you mean `kB` or `KiB`?"
    )


def test_hostile_characters_are_shown_escaped() -> None:
    with pytest.raises(BlockcError) as caught:
        read_machine(changed(('"none"', '"\\u001b[31m\\u202e"'), ("units = 4", '"\\u0007" = 1\nunits = 4')))
    assert all(visible(line) == line for line in str(caught.value).split("\n"))
    assert "cannot be `\\x1b[31m\\u202e`" in str(caught.value)


def test_very_many_problems_are_cut_short() -> None:
    start = time.process_time()
    found = problems("".join(f"x{number} = 1\n" for number in range(5_000)) + GOOD)
    assert time.process_time() - start < 10
    assert len(found) == 101
    assert found[-1].message == "and 4,900 more problems"


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#" * 400 + "\n" + "\n" * LARGEST_FILE, "larger than 64 KiB"),
        ("x = " + "[" * 600, "line 1 is longer than 500 characters"),
        (GOOD + "a" + ".a" * 30_000 + " = 1", "longer than 500 characters"),
        ("x = " + ("[" * 400 + "\n") * 20, "nested too deeply"),
    ],
)
def test_what_would_take_long_is_a_limit(text: str, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        read_machine(text)


def test_long_keys_and_many_tables_take_little_time() -> None:
    start = time.process_time()
    key = "a" + ".a" * 240
    problems("\n".join(f"{key}.b{number} = {{}}" for number in range(125)) + "\n" + GOOD)
    problems("\n".join(f"[{key}.b{number}]" for number in range(125)))
    problems("[[tier]]\n" * 7_000)
    assert time.process_time() - start < 10


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("192 KiB", quantities.BYTES, 192 * 1024),
        ("141 GB", quantities.BYTES, 141 * 10**9),
        ("1.5kB", quantities.BYTES, 1500),
        ("2 B", quantities.BYTES, 2),
        ("4.8 TB/s", quantities.BANDWIDTH, 4_800_000_000_000),
        ("3 GiB/s", quantities.BANDWIDTH, 3 * 2**30),
        ("320 TFLOP/s", quantities.RATE, 320 * 10**12),
        ("4 TOP/s", quantities.RATE, 4 * 10**12),
        ("1e3 FLOP/s", quantities.RATE, 1000),
        ("4 us", quantities.TIME, Fraction(4, 10**6)),
        ("0 ns", quantities.TIME, 0),
    ],
)
def test_quantities_are_exact(text: str, kind: quantities.Kind, value: Fraction) -> None:
    assert quantities.parse(text, kind) == value


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (196608, quantities.BYTES, "192 KiB"),
        (141 * 10**9, quantities.BYTES, "141 GB"),
        (4.8e12, quantities.BANDWIDTH, "4.8 TB/s"),
        (7.94e9, quantities.BANDWIDTH, "7.94 GB/s"),
        (4e-6, quantities.TIME, "4 us"),
        (0.0, quantities.TIME, "0 us"),
        (1.0, quantities.TIME, "1 s"),
        (353.9e12, quantities.FLOPS, "353.9 TFLOP/s"),
    ],
)
def test_quantities_are_written_to_be_read(value: float, kind: quantities.Kind, text: str) -> None:
    assert quantities.written(value, kind) == text


@given(value=st.floats(1e-12, 1e21), kind=st.sampled_from((quantities.BANDWIDTH, quantities.RATE, quantities.TIME)))
def test_what_is_written_reads_back(value: float, kind: quantities.Kind) -> None:
    assert float(quantities.parse(quantities.written(value, kind), kind)) == value


@given(value=st.integers(1, 2**60))
def test_bytes_that_are_written_read_back(value: int) -> None:
    assert quantities.parse(quantities.written(value, quantities.BYTES), quantities.BYTES) == value


# --- the shipped machines ---------------------------------------------------------------------------------------------


def test_the_shipped_machines_are_those_of_the_documents() -> None:
    assert [path.stem for path in SHIPPED] == ["a100", "ascend", "cpu", "h100", "h200", "scratchpad", "toy"]
    assert list(loading.machine_names()) == [path.stem for path in SHIPPED]
    assert set(loading.machine_names().values()) == {loading.SHIPPED}


def test_a_device_is_described_by_the_machine_with_its_name() -> None:
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100"}
    assert {name: loading.machine_of(name) for name in names} == names
    assert loading.machine_of("NVIDIA L4") is None is loading.machine_of("cpu, not a GPU")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_sound_and_says_where_its_figures_are_from(path: Path) -> None:
    text = path.read_text()
    machine = read_machine(text, path.name)
    assert machine.name == path.stem
    assert read_machine(machine_text(machine)) == machine
    assert loading.load_machine(path.stem).name == loading.load_machine(str(path)).name == path.stem
    assert max(map(len, text.splitlines())) <= 130
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any(re.search(r"Sources|assumptions|measured|invented", line) for line in comments)
    cited = re.findall(
        r"#.*?\[([0-9])[\], ]", "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    )
    assert [number for number in cited if not any(line.startswith(f"#   [{number}] ") for line in comments)] == []


def test_every_field_that_is_read_is_shown() -> None:
    text = machine_text(read_machine(WITH_MOVES + WAYS))
    tables = {"machine": fields.MACHINE, "tier": fields.TIER, "move": fields.MOVE, "compute": fields.COMPUTE}
    known = [field.key for table in (*tables.values(), *fields.RATES.values()) for field in table]
    assert [key for key in known if not re.search(rf"\b{key} = ", text)] == []
    assert [operation for operation in fields.RATES if f"\n{operation}.f" not in text] == []


def test_the_directed_moves_of_the_ascend_like_machine() -> None:
    machine = loading.load_machine("ascend")
    ways = {(move.source, move.destination) for move in machine.moves}
    assert ("GM", "L1") in ways
    assert ("L1", "GM") not in ways
    assert ("L0C", "UB") not in ways  # in the separated architecture, results get there through global memory
    assert {tier.name for tier in machine.tiers} == {"GM", "L1", "UB", "L0A", "L0B", "L0C"}


def test_tiers_without_moves_are_a_chain() -> None:
    machine = read_machine(GOOD)
    assert machine.moves == (Move("outer", "inner", 10e9, 1), Move("inner", "outer", 5e9, 1))
    assert "[[move]]" not in machine_text(machine)


# --- hostile input ----------------------------------------------------------------------------------------------------

PROBLEM = re.compile(r"error\[E02\d\d\]: .+\n +--> .+:\d+:\d+\n +\|\n ?\d+ \| .*\n +\| +\^+.*")
LONE = re.compile(r"error\[E(0190|0290|0200|0900)\]: .+(\n  hint: .+)?")
WORDS = re.compile(rb"\w+|\s+|[^\w\s]")
SPICE = (
    b"\xff",
    b"\x00",
    b"\x1b[31m",
    b"'",
    b'"',
    b'"""',
    b"'''",
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b"=",
    b".",
    b",",
    b"#",
    b"\n",
    b"\r",
    b"\t",
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"9" * 400,
    b"0x" + b"f" * 400,
    b"1e999",
    b"1979-05-27",
    b"07:32:00",
    b"true",
    b"[" * 300,
    b"{a=" * 100,
    b"a." * 100,
    b"\\u0000",
    b"\\U0001f525",
    "\u202e".encode(),
    b"9e99 GiB",
    b"tier",
    b"GM",
)


def mutated(numbers: random.Random, sources: list[bytes]) -> bytes:
    """One of the sources with some bytes and words deleted, doubled, replaced or put in."""
    content = numbers.choice(sources)
    for _ in range(numbers.randint(1, 4)):
        if numbers.random() < 0.5:
            at = numbers.randrange(len(content) or 1)
            content = content[:at] + numbers.choice((b"", bytes([numbers.randrange(256)]))) + content[at + 1 :]
            continue
        words = WORDS.findall(content) or [b" "]
        at = numbers.randrange(len(words))
        words[at : at + numbers.randint(0, 2)] = [numbers.choice((*SPICE, numbers.choice(words), words[at] * 2))]
        content = b"".join(words)
    return content


def check_survives(content: bytes, folder: Path, reproduction: str) -> str:
    """Asserts that the answer to a file is a machine or messages with places. Returns "ok" or the first code."""
    path = folder / "case.toml"
    path.write_bytes(content)
    start = time.process_time()
    try:
        machine = loading.load_file(str(path))
    except BlockcError as error:
        assert time.process_time() - start < SECONDS, reproduction
        for problem in str(error).split("\n\n"):
            assert (PROBLEM if "\n" in problem and "-->" in problem else LONE).fullmatch(problem), (
                f"{problem}\n{reproduction}"
            )
            assert all(visible(line) == line for line in problem.split("\n")), reproduction
        return error.problems[0].code
    assert time.process_time() - start < SECONDS, reproduction
    assert read_machine(machine_text(machine)) == machine, reproduction
    return "ok"


def check_mutations(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Checks so many mutations of the shipped files. Returns how often each answer came."""
    sources = [path.read_bytes() for path in SHIPPED]
    answers: dict[str, int] = {}
    for number in range(count):
        content = mutated(random.Random(seed + number), sources)
        answer = check_survives(content, folder, f"python tests/test_machines.py --count 1 --seed {seed + number}")
        answers[answer] = answers.get(answer, 0) + 1
    return answers


def test_random_mutations_of_machine_files_are_survived(tmp_path: Path) -> None:
    answers = check_mutations(COUNT, SEED, tmp_path)
    assert {"ok", "E0201", "E0202", "E0205", "E0206", "E0207", "E0900"} <= set(answers)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_value_of_another_type_in_a_machine_file_is_survived(path: Path, tmp_path: Path) -> None:
    """Random mutations make one in 2,000 files."""
    content, times = re.subn(rb"(?m)^units = \d+", b'units = "many"', path.read_bytes())
    assert times and check_survives(content, tmp_path, path.name) == "E0204"


def toml(value: Any) -> str:
    """A value in TOML, on one line."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return json.dumps(value)


def table_text(key: str, value: Any) -> str:
    """A key with its value in TOML, a list with one element in a line."""
    if isinstance(value, list):
        return f"{json.dumps(key)} = [\n" + "".join(f"{toml(inner)},\n" for inner in value) + "]\n"
    return f"{json.dumps(key)} = {toml(value)}\n"


def reshaped(numbers: random.Random, value: Any) -> Any:
    """A value of TOML with something in it removed, doubled, moved or replaced by something of another type."""
    if not isinstance(value, dict | list) or not value or numbers.random() < 0.1:
        return numbers.choice((3, -1, 2.5, True, "x", "inner", "64 KiB", [], {}, [3], [{}], [value], {"f32": value}))
    entries: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    at = numbers.randrange(len(entries))
    match numbers.randrange(8):
        case 0:
            del entries[at]
        case 1 | 2 | 3 if isinstance(value, list):
            added: Any = numbers.choice((entries[at][1], 3, {}))
            entries.insert(numbers.randrange(len(entries)), (at, added))
        case _:
            entries[at] = (entries[at][0], reshaped(numbers, entries[at][1]))
    return dict(entries) if isinstance(value, dict) else [inner for _, inner in entries]


def test_values_of_any_shape_are_survived(tmp_path: Path) -> None:
    data = tomllib.loads(WITH_MOVES + WAYS)
    answers = set()
    for seed in range(COUNT):
        numbers = random.Random(seed)
        changed_data = data
        for _ in range(numbers.randint(1, 4)):
            changed_data = reshaped(numbers, changed_data)
        if isinstance(changed_data, dict):
            text = "".join(table_text(key, value) for key, value in changed_data.items())
            answers.add(check_survives(text.encode(), tmp_path, f"seed {seed}"))
    assert {"ok", "E0202", "E0203", "E0204", "E0206", "E0207", "E0208", "E0210"} <= answers
    assert fields.SYNTAX not in answers


def main() -> None:
    """More mutations, or one of them again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(check_mutations(options.count, options.seed, Path(folder)))


if __name__ == "__main__":
    main()
