"""Freed memory that stays with a process while it trains, or reads.

A step asks for the same large blocks as the one before. glibc returns blocks above 32 MiB to the system when they are freed, and
smaller ones as soon as they lie on top of the heap, so that each step gets them back a page at a time, filled with zeros: a fault
for every 4 KiB, which is dear on a virtual machine.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_MIB = 1 << 20
_SET_BY_USER = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
_lock = threading.Lock()
_inside = 0  # of how many of these blocks the process is inside


@contextmanager
def freed_memory_kept(keep: bool = True) -> Iterator[None]:
    """Inside, what this process frees stays with it; after the outermost such block all that is free goes back to the system.

    The process then holds what it needed at its peak, and the gaps between its blocks: glibc takes an aligned block, as tensors
    are, only from a freed one that is a little larger, so that the first few steps may each map a block of one size anew. Does
    nothing where the C library is not glibc, where the environment sets the allocator (``MALLOC_*_``, ``GLIBC_TUNABLES``), or
    where ``keep`` is False.
    """
    global _inside
    if not keep or not _settable():
        yield
        return
    keep_freed_memory()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _give_back()


def keep_freed_memory() -> bool:
    """From now on what this process frees stays with it until it ends: for one that does the same work again and again.

    Does nothing, and returns False, where ``freed_memory_kept`` does nothing.
    """
    global _inside
    if not _settable():
        return False
    libc = ctypes.CDLL(None)
    with _lock:
        _inside += 1
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 64 * _MIB)  # also keeps the 64 MiB heaps of threads other than the first
    return True


def _settable() -> bool:
    return platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in _SET_BY_USER)


def _give_back() -> None:
    libc = ctypes.CDLL(None)
    # What glibc's own, moving thresholds come to in a process that has freed large blocks; once set, they no longer move.
    libc.mallopt(_MMAP_MAX, 65_536)
    libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
    libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
    libc.mallopt(_TOP_PAD, 128 * 1024)
    libc.malloc_trim(0)
