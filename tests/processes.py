"""Processes of Python that start at once: `run(...)` is `subprocess.run([sys.executable, ...])` without the imports.

A server is forked from the process that runs the tests as soon as that has imported torch and transformers, and before
it imports this package. Of itself it forks what it is asked for: each a process of its own with its own environment,
folder and output, which may be killed. What depends on how an interpreter begins or ends (its options, the order of
imports, its finalisation) needs a real one, out of `subprocess`.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from types import ModuleType

_server: socket.socket | None = None


def start_server() -> None:
    """Fork the server off this process, as it is now. Where forking is not safe, processes are started as usual."""
    global _server
    if sys.platform != "linux":
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            _serve(theirs)
        finally:
            os._exit(1)
    theirs.close()
    _server = ours


class Started:
    """A process: `python *arguments`, with `env` and in `cwd` as `subprocess` takes them.

    `preload` are modules of others for the server to import before, for this process and all that come after it.
    """

    def __init__(self, *arguments, env=None, cwd=None, preload=()):
        self.arguments = [*map(str, arguments)]
        self._output = [
            tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
            for _ in range(2)
        ]
        env, cwd = dict(os.environ if env is None else env), str(cwd or os.getcwd())
        self._process = None
        if _server is None:
            out, err = self._output
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments], env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
            self.pid = self._process.pid
            return
        status, theirs = os.pipe()
        request = json.dumps({"arguments": self.arguments, "env": env, "cwd": cwd, "preload": [*preload]})
        socket.send_fds(_server, [request.encode()], [*(file.fileno() for file in self._output), theirs])
        os.close(theirs)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def wait(self, timeout: float = 120) -> int:
        """The exit code; of a process that a signal ended, its negative number."""
        if self._process is not None:
            return self._process.wait(timeout)
        if not select.select([self._status], [], [], timeout)[0]:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return int(self._status.readline())

    def output(self) -> list[str]:
        """What it has written on standard output and on standard error."""
        for file in self._output:
            file.seek(0)
        return [file.read() for file in self._output]


def run(*arguments, timeout: float = 120, check: bool = False, **options) -> subprocess.CompletedProcess:
    """`python *arguments` to its end; `options` as of `Started`."""
    started = Started(*arguments, **options)
    code = started.wait(timeout)
    done = subprocess.CompletedProcess(started.arguments, code, *started.output())
    assert not (check and code), done.stderr
    return done


def start_world(world_size: int, *arguments, **options) -> list[Started]:
    """`python *arguments` as each of the processes that a launcher starts, which meet on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = dict(options.pop("env", os.environ)) | {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size))
    return [Started(*arguments, env=env | rank, **options) for rank in ranks]


# In the server


def _serve(channel: socket.socket) -> None:
    """Until the process that runs the tests is gone."""
    gc.freeze()
    faulthandler.disable()
    os.closerange(3, channel.fileno())
    os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for `_supervise`
    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 2**20, 3)
        if not message:
            os._exit(0)
        request = json.loads(message)
        for module in request["preload"]:
            importlib.import_module(module)
        if os.fork() == 0:
            channel.close()
            _supervise(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(request: dict, out: int, err: int, status: int) -> None:
    """Start the process, tell its number, and when it has ended its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(status)
        _become(request, out, err)
    os.write(status, f"{child}\n".encode())
    _, ended = os.waitpid(child, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _become(request: dict, out: int, err: int) -> None:
    """Be what `python *arguments` would be, to the end."""
    code = 1
    try:
        for target, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(descriptor, target)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, 1, encoding="utf-8")  # noqa: SIM115
            for number, mode in enumerate("rww")
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        _set_threads()
        code = _execute(*request["arguments"])
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _set_threads() -> None:
    """OpenMP has read its variable when torch was imported."""
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _execute(first: str, *arguments: str) -> int:
    """Run a program, and return the exit code."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        if first == "-c":
            code, *rest = arguments
            sys.argv, sys.path[:0] = ["-c", *rest], [""]
            exec(compile(code, "<string>", "exec"), main.__dict__)
        elif first == "-m":
            module, *rest = arguments
            sys.argv, sys.path[:0] = ["-m", *rest], [""]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:0] = [first, *arguments], [os.path.dirname(os.path.abspath(first))]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
