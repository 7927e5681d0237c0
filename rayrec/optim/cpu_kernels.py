"""Kernels in C++ for the CPU, built by the machine's compiler when they are first asked for."""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayrec.optim.compiling import tell_uncompiled

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_LONGEST_BUILD_S = 300

Kernel = Callable[..., None]


def cpu_kernel(source: Path, name: str, arguments: tuple[Any, ...]) -> Kernel | None:
    """The function of that name and ctypes in a C++ source, by the compiler that ``CXX`` names, else g++.

    None where it cannot be built; stderr is then told why in one line.
    """
    return _built(os.environ.get("CXX") or "g++", source, name, arguments)


@functools.cache
def _built(compiler: str, source: Path, name: str, arguments: tuple[Any, ...]) -> Kernel | None:
    try:
        # anew in each process: half a second, and no file of another machine
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "kernel.so"
            command = [*shlex.split(compiler), *_FLAGS, str(source), "-o", str(library)]
            subprocess.run(
                command, check=True, capture_output=True, text=True, errors="replace", timeout=_LONGEST_BUILD_S
            )
            kernel: Kernel = getattr(ctypes.CDLL(str(library)), name)
    except subprocess.CalledProcessError as error:
        tell_uncompiled(f"{compiler}: {error.stderr}")
        return None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:  # ValueError: quotes in CXX that do not close
        tell_uncompiled(f"{compiler}: {error}")
        return None
    kernel.argtypes = list(arguments)  # type: ignore[attr-defined]
    kernel.restype = None  # type: ignore[attr-defined]
    return kernel
