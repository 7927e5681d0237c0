"""Ray for a job: the cluster it was submitted to, or an own one on this machine."""

import atexit
import logging
import os
import signal
import sys
import tempfile
import threading
from concurrent.futures import Future

import ray

from rayrec.errors import UserError
from rayrec.families.table import OTHERS
from rayrec.runs.own_ray import few_processes
from rayrec.runs.ray_settings import ONE_MACHINE_SETTINGS

SOCKET_NAME = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.sock")

# A report waits for a poll of the controller (2 s by default). Prints reach the driver as they are.
_TRAIN_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
# The preemption watcher would tell every second that there is no dashboard.
_OWN_CLUSTER_SETTINGS = {**ONE_MACHINE_SETTINGS, "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}

# Every process that stands by pays 1.3 s of CPU and 45 MB for what one controller and the workers need: on many cores, too much.
PRELOADED = 8

_LOGS = ray.LoggingConfig(log_level="ERROR")

_beginning: "Future[None] | None" = None


def begin() -> None:
    """Begin the own Ray that ``connect`` ends, beside all that the caller does in between; only in a main thread, and not where a
    cluster is to be joined. For a job that will train by Ray Train: the processes that stand by import what its actors need, on a
    machine of few cores."""
    global _beginning
    if ray.is_initialized() or _beginning is not None or joined_cluster():
        return
    if threading.current_thread() is not threading.main_thread():
        return
    if (os.cpu_count() or 1) <= PRELOADED:
        os.environ.setdefault("RAY_preload_python_modules", "rayrec,ray.train.v2._internal.execution.controller")
    _settle()  # here: no other thread may change what this one's libraries read
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as ray.init does in a main thread
    _beginning = Future()
    atexit.register(_beginning.exception)  # waits: what ends Ray at exit must find it whole
    threading.Thread(target=_begin, args=(_beginning,), name="ray-beginning", daemon=True).start()


def _begin(beginning: "Future[None]") -> None:
    try:
        _start(None, logging.ERROR)  # not: that it is no main thread
    except BaseException as error:
        beginning.set_exception(error)
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    beginning.set_result(None)
    threading.Event().wait()  # Linux ends Ray's processes with the thread that started them


def connect(*, num_cpus: int | None = None) -> None:
    """Join the cluster of ``$RAY_ADDRESS`` (set in submitted jobs), else start a private one here. Idempotent.

    A private Ray listens without dashboard, takes 300 MB of shared memory for blocks on their way, and ends with the process.
    Workers log errors only; what they print (progress) is shown. num_cpus: of a private one that is started now; one that runs
    already with fewer is kept, which a line tells.
    """
    global _beginning
    if _beginning is not None:
        begun = _beginning
        try:
            begun.result()
        finally:
            if begun.done():  # else Ctrl-C: whoever connects next waits for the same
                _beginning = None
    if not ray.is_initialized():
        settings = _settle()
        if joined_cluster():
            ray.init(log_to_driver=True, runtime_env={"env_vars": settings}, logging_config=_LOGS)
        else:
            _start(num_cpus, logging.WARNING)
    elif num_cpus is not None and (there := ray.cluster_resources().get("CPU", 0)) < num_cpus:
        print(
            f"Ray runs already, with {there:g} CPUs; the {num_cpus} asked for are not added",
            file=sys.stderr,
            flush=True,
        )


def _settle() -> dict[str, str]:
    """Put Ray's settings into the environment, where they do not stand yet; returns them."""
    settings = _TRAIN_SETTINGS | ({} if joined_cluster() else _OWN_CLUSTER_SETTINGS)
    settings |= {OTHERS: os.environ[OTHERS]} if OTHERS in os.environ else {}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return settings


def _start(num_cpus: int | None, logging_level: int) -> None:
    with few_processes():
        ray.init(
            address="local",
            num_cpus=num_cpus or os.cpu_count(),
            include_dashboard=False,
            object_store_memory=300_000_000,
            log_to_driver=True,
            logging_level=logging_level,
            logging_config=_LOGS,
            _temp_dir=_short_temporary_folder(),
        )


def joined_cluster() -> bool:
    """Whether jobs run on a cluster that others own, not on an own one that ends with this process."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _short_temporary_folder() -> str | None:
    """None = Ray's own choice; else a place whose sockets' names the system takes (107 bytes). Raises UserError."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(place)) + SOCKET_NAME <= 107:
        return None
    if os.access("/tmp", os.W_OK):
        return "/tmp/ray"
    raise UserError(f"{place}: is too long a temporary folder for Ray's sockets; set RAY_TMPDIR to a shorter one")


def gpus() -> int:
    """Whole GPUs of the connected cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
