"""Compiles Triton kernels for GPUs that need not be there: jobs as lines of JSON on stdin, results as lines on stdout.

    python -m blockc.codegen.triton_compile < jobs

It runs in a process of its own, since some kernels end the compiler's process. Registers and spills are what `ptxas`
says, which comes with Triton.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from blockc.codegen.loader import import_kernels

_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_SERIALIZED = re.compile(r"(C75\d\d)[^\n]*serializ", re.IGNORECASE)
PATIENCE = 60.0  # seconds without a job, after which a process ends
ARCHITECTURE_SPECIFIC = 90  # capabilities from here on have instructions of their own, `sm_90a`


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
    # Inside the folder of the kernels, which the caller removes even if this process is ended.
    with tempfile.TemporaryDirectory(dir=Path(job["file"]).parent) as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(made.asm["ptx"])
        arch = f"sm_{job['capability']}{'a' if job['capability'] >= ARCHITECTURE_SPECIFIC else ''}"
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


def outcome(job: dict[str, Any]) -> dict[str, Any]:
    """What became of a job: the figures of the kernel, or the `error` that the compiler ended with."""
    from triton.errors import TritonError

    refusals = (TritonError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile_kernel(job)
    except refusals as error:  # what else there may be ends this process, and another one takes the next job
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        return {"error": lines[-1][-300:]}


def main() -> int:
    """Compile each job on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is no answer
    import triton  # noqa: F401 - fails here, and not in a job, where there is none

    while True:
        alone = threading.Timer(PATIENCE, os._exit, (0,))
        alone.daemon = True
        alone.start()
        line = sys.stdin.readline()
        alone.cancel()
        if not line:
            return 0
        print(json.dumps(outcome(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
