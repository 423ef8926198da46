"""Runs one command in a process of its own, which can be hindered, interrupted, killed.

The process is forked from a server that has imported everything and done nothing else:
a command costs what its work costs, and what is done to it is really done.
"""

import ctypes
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.commands.use import Watch

APPS = ("classify", "continual", "data_pruning", "recsys", "unlearning")
STEPS = ("open", "os.rename", "os.remove", "os.mkdir")


@dataclass(frozen=True)
class Done:
    """status: of the process, negative for a signal. steps: its file operations.

    ignored: settings that it offers and made no use of; see `use`.
    """

    status: int
    out: str
    err: str
    steps: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trouble:
    """What happens to the process.

    signal: that it gets at its file operation number `at` in the folder. limit: bytes
    that a file may have. powerless: without root's power to write everywhere. environ:
    of the process; then it has no settings of pip but these.
    """

    signal: int = 0
    at: int = 0
    limit: int | None = None
    powerless: bool = False
    environ: tuple[tuple[str, str], ...] = ()


def server() -> multiprocessing.context.ForkServerContext:
    """It has imported all commands."""
    found = multiprocessing.get_context("forkserver")
    modules = [f"apps.{name}.cli" for name in APPS]
    found.set_forkserver_preload(["sparsekit.cli", *modules, __name__])
    return found


def run(argv: list[str], folder: Path, trouble: Trouble | None = None) -> Done:
    """The command in `folder`, to its end."""
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(3)]
    ends = [end for _, end in pipes]
    process = server().Process(
        target=_command, args=(argv, str(folder), trouble or Trouble(), *ends)
    )
    process.start()
    for end in ends:
        end.close()
    with ThreadPoolExecutor(len(pipes)) as pool:
        reading = [pool.submit(_all_of, begin) for begin, _ in pipes]
        process.join(240)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{argv} did not end within four minutes")
        out, err, told = (one.result() for one in reading)
    steps, ignored = json.loads(told or "[0, []]")
    return Done(process.exitcode, out, err, steps, tuple(ignored))


def inside(argv: list[str], folder: Path) -> Done:
    """The command in this process, for what ends before it works."""
    from sparsekit.cli import main

    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Done(status, out.getvalue(), err.getvalue(), 0)


def _all_of(pipe: Connection) -> str:
    parts = []
    while part := os.read(pipe.fileno(), 65536):
        parts.append(part)
    return b"".join(parts).decode()


def _command(argv: list[str], folder: str, trouble: Trouble, *ends: Connection) -> None:
    from sparsekit.cli import main

    os.dup2(ends[0].fileno(), 1)
    os.dup2(ends[1].fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    if trouble.environ:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            del os.environ[name]
        os.environ.update(trouble.environ)
    if trouble.powerless and os.getuid() == 0:
        give_up_power()
    steps, watch = 0, Watch()
    watch.start()

    def step(event: str, arguments: tuple) -> None:
        nonlocal steps
        if event in STEPS and _within(arguments, folder):
            steps += 1
            if trouble.signal and steps == trouble.at:
                os.kill(os.getpid(), trouble.signal)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(step)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if trouble.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.limit, hard))
    sys.argv = ["sparsekit", *argv]
    status = 1
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os.write(ends[2].fileno(), json.dumps([steps, watch.ignored()]).encode())
    os._exit(status)


def _within(arguments: tuple, folder: str) -> bool:
    path = arguments[0] if arguments else None
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(f"{folder}/")


def give_up_power() -> None:
    """Of Linux's root, to write and read what its permissions forbid."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for i in (0, 1):  # CAP_DAC_OVERRIDE is bit 1, CAP_DAC_READ_SEARCH bit 2
        sets[i] &= ~0b110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
