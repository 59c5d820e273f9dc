"""Compiles one kernel of a Triton file for a GPU that need not be there: a job as JSON on stdin, its result on stdout.

    python -m blockc.codegen.triton_compile < job.json

It runs in a process of its own, since some kernels end the compiler's process; what goes wrong is the last line on
stderr. Registers and spills are what `ptxas`
says, which comes with Triton.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from blockc.codegen.loader import import_kernels

_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_SERIALIZED = re.compile(r"(C75\d\d)[^\n]*serializ", re.IGNORECASE)


def compile_kernel(job: dict[str, Any]) -> dict[str, Any]:
    """The registers of a thread, bytes spilled, bytes of shared memory and warnings of a kernel.

    `job`: file, function, signature, constants, divisible (positions of arguments that are multiples of 16),
    capability, warps, stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    module = import_kernels(job["file"])
    attributes = {(position,): [["tt.divisibility", 16]] for position in job["divisible"]}
    source = ASTSource(getattr(module, job["function"]), job["signature"], job["constants"], attributes)
    target = GPUTarget("cuda", job["capability"], 32)
    made = triton.compile(source, target=target, options={"num_warps": job["warps"], "num_stages": job["stages"]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(made.asm["ptx"])
        arch = f"sm_{job['capability']}{'a' if job['capability'] >= 90 else ''}"
        command = [
            get_ptxas(job["capability"]).path,
            "-v",
            f"--gpu-name={arch}",
            str(path),
            "-o",
            str(path.with_suffix(".cubin")),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    text = said.stdout + said.stderr
    used = _USED.search(text)
    if used is None:
        raise RuntimeError(" ".join(text.split())[-300:] or "ptxas said nothing")
    return {
        "registers": int(used[1]),
        "spill_bytes": sum(map(int, _SPILLS.findall(text))),
        "shared_bytes": int(made.metadata.shared),
        "warnings": sorted({f"{code}: products one after the other" for code in _SERIALIZED.findall(text)}),
    }


def main() -> int:
    """Compile the job on stdin."""
    job = json.load(sys.stdin)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        result = compile_kernel(job)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
