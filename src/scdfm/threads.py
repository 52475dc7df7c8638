"""The number of threads that the process was given stays as it is."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


@contextlib.contextmanager
def openmp_threads_kept() -> Iterator[None]:
    """Put the number of OpenMP threads back after numba's pool, which sets it for the whole process, torch included.

    Two threads where one was asked for make small tensor operations many times slower on a busy machine. The
    pool's runtime is loaded first: a limit holds for the runtimes that are there when it begins.
    """
    with contextlib.suppress(ImportError):  # a numba without OpenMP sets nothing
        importlib.import_module("numba.np.ufunc.omppool")
    with threadpool_limits(1, user_api="openmp"):
        yield
