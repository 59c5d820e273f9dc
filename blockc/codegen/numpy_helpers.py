"""The helper functions of generated NumPy files, as source text; a file gets those that it calls."""

from __future__ import annotations

LEAST = "LEAST = 500_000"

HELPERS: dict[str, str] = {
    "argument": '''
def argument(arrays, name, dtype, rank):
    """The array called `name`, as `dtype`; without a copy if it has that type."""
    if name not in arrays:
        raise ValueError(f"array {name!r} is missing")
    array = np.asarray(arrays[name], dtype)
    if array.ndim != rank:
        raise ValueError(f"array {name!r} has {array.ndim} axes, not {rank}")
    return array
''',
    "check": '''
def check(name, array, shape):
    """Raise ValueError unless the array has this shape."""
    if array.shape != shape:
        raise ValueError(f"array {name!r} has shape {array.shape}, not {shape}")
''',
    "one_thread": '''
@cache
def blas():
    """The thread pools of the BLAS libraries."""
    return ThreadpoolController().select(user_api="blas")


def available():
    """How many threads to use: as many as BLAS would."""
    return max((pool["num_threads"] for pool in blas().info()), default=cpu_count() or 1)


GUARD, LIMITS = Lock(), []


@contextmanager
def one_thread():
    """BLAS with one thread. Of calls that overlap, the last one to end undoes what the first one did."""
    with GUARD:
        LIMITS.append(blas().limit(limits=1))
    try:
        yield
    finally:
        with GUARD:
            LIMITS.pop().restore_original_limits()
''',
    "product": f'''
try:
    import torch
except ImportError:  # NumPy multiplies
    torch = None

{LEAST}  # multiplications from which torch, whose call takes 2 us longer, is earlier done
EXACT, THREADS = [False], []


def limit_torch():
    """Have torch use one thread in the current one."""
    if torch is not None:
        torch.set_num_threads(1)


@contextmanager
def one_thread_of_torch():
    """torch with one thread in the current one, and as it was afterwards, also if calls overlap."""
    if torch is None:
        yield
        return
    with GUARD:
        EXACT[0] = multiplies_exactly()
        THREADS.append(torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with GUARD:
            torch.set_num_threads(THREADS[0])
            THREADS.pop()


def multiplies_exactly():
    """True if torch multiplies f32 as f32. Settings may allow it less."""
    try:
        return torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
    except AttributeError:  # before torch 2.9
        return torch.get_float32_matmul_precision() == "highest"


def product(a, b, out):
    """The product of a and b into `out`: by torch if it is large and no vector, which waits for memory in both; by
    NumPy also where torch would warn (arrays that are read only), refuse (negative strides) or round."""
    rows, columns = out.shape[-2:]
    large = a.size * columns >= LEAST and rows > 1 and columns > 1
    if large and EXACT[0] and a.flags.writeable and b.flags.writeable:
        try:
            torch.matmul(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))
            return
        except ValueError:  # strides
            pass
    np.matmul(a, b, out=out)
''',
    "run": '''
@cache
def pool(process, threads):
    """Threads that wait for work, of one process: those of its parent do not exist in a forked one."""
    return ThreadPoolExecutor(threads)


def run(task, scratch, indices, threads, work):
    """Call task(scratch(), *index) for each index, on up to `threads` threads. `work`: elements in all."""
    pending = deque(indices)

    def worker():
        room = scratch()
        with np.errstate(all="ignore"):  # it holds for one thread only
            while pending:
                try:
                    index = pending.popleft()
                except IndexError:  # another thread was faster
                    return
                task(room, *index)

    threads = min(threads, len(pending))
    others = threads - 1 if work >= 200_000 else 0  # waking a thread takes longer than less work
    helping = [pool(getpid(), others).submit(worker) for _ in range(others)]
    worker()
    for future in helping:
        if not future.cancel():  # one that has not begun has nothing left to do
            future.result()
''',
    "erf": '''
# erf(x) = x P(x^2) up to 1, and 1 - exp(-x^2) Q(1 - 4/(x + 2)) from there to 6: Chebyshev fits, highest power first.
ERF = {
    4: (
        (7.875875063e-05, -0.0008016864287, 0.005189087423, -0.02685421201, 0.1128359472, -0.3761262667, 1.128379166),
        (
            -0.0008468608866, -0.0008467640506, 0.006973542284, 0.00373360678,
            -0.0789771508, 0.2416581671, -0.4271858701, 0.2553956764,
        ),
    ),
    8: (
        (
            -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07, 1.6447424703317362e-06,
            -1.492473690741966e-05, 0.00012055294904839707, -0.0008548325975389692, 0.0052239776071164225,
            -0.02686617064323777, 0.11283791670945006, -0.3761263890318354, 1.1283791670955126,
        ),
        (
            -2.22812957637235e-07, 4.146302183268488e-06, 1.859427387429402e-06, -1.4166339069117108e-05,
            -2.7640727821912852e-05, 2.7560352756678313e-05, 0.00017436477257256738, 4.355265359817883e-05,
            -0.0009819771114740715, -0.0008471431229415333, 0.006997461739200575, 0.003732892401656448,
            -0.07897858101571269, 0.24165819424248763, -0.4271858474139585, 0.2553956763105057,
        ),
    ),
}


def polynomial(coefficients, x, out):
    """The value at x of a polynomial, highest power first, into `out`."""
    np.multiply(x, coefficients[0], out=out)
    for coefficient in coefficients[1:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, x, out=out)
    np.add(out, coefficients[-1], out=out)


def erf(x, room, other, mask, out):
    """The error function of x into `out`. All are arrays in C order; room, other and mask are scratch."""
    near, far = ERF[x.itemsize]
    flat = [array.reshape(-1) for array in (x, room, other, mask, out)]
    for start in range(0, x.size, 8192):  # in pieces that stay in the cache
        x, room, other, mask, out = (array[start : start + 8192] for array in flat)
        np.square(x, out=room)
        np.minimum(room, 1.0, out=room)
        polynomial(near, room, out)
        np.multiply(out, x, out=out)
        np.absolute(x, out=room)
        np.greater(room, 1.0, out=mask)
        np.minimum(room, 6.0, out=room)
        np.add(room, 2.0, out=room)
        np.divide(4.0, room, out=room)
        np.subtract(1.0, room, out=room)
        polynomial(far, room, other)
        np.square(x, out=room)
        np.negative(room, out=room)
        np.exp(room, out=room)
        np.multiply(other, room, out=other)
        np.subtract(1.0, other, out=other)
        np.copysign(other, x, out=other)
        np.copyto(out, other, where=mask)
''',
    "to_integer": '''
def to_integer(x, low, high, out):
    """x without its fraction, into `out`: saturated, NaN as 0. Rare enough to allocate."""
    wide = np.nan_to_num(np.asarray(x, np.float64), nan=0.0, posinf=high, neginf=low)
    np.copyto(out, np.clip(np.trunc(wide), low, high), casting="unsafe")
''',
}

REQUIRES = {
    "argument": (),
    "check": (),
    "one_thread": (
        "from contextlib import contextmanager",
        "from functools import cache",
        "from os import cpu_count",
        "from threading import Lock",
        "from threadpoolctl import ThreadpoolController",
    ),
    "product": (),
    "run": (
        "from collections import deque",
        "from concurrent.futures import ThreadPoolExecutor",
        "from functools import cache",
        "from os import getpid",
    ),
    "erf": (),
    "to_integer": (),
}
