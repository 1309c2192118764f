"""`python -m MODULE ...` in a fork of a process that has loaded torch and Lightning: the command, less its imports.

    command = Command("-m", "src.train", "trainer.max_epochs=1", stdout=subprocess.PIPE)

The process that is forked is this file, run by itself. A command lives in a session of its own, as one of a shell does.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOADED = [
    *("hydra.main", "lightning.pytorch.loggers", "matplotlib.pyplot", "optuna.visualization.matplotlib"),
    *("pandas", "PIL.Image", "rich.table", "scipy.stats", "sklearn.datasets", "torch.utils.tensorboard"),
    *("torchvision.transforms.v2", "src.callbacks.checkpoint", "src.data.digits", "src.figures", "src.modules.gan"),
    *("src.runs.table", "src.sweeps.sweep"),
]


class Command:
    """A command of this project that runs; `subprocess.Popen`, as far as the tests use it.

    Args:
        arguments: as for Python: "-m", the module, and what it is given.
        stdout, stderr: files; None discards, `subprocess.PIPE` gives a pipe to read lines of text from, and
            `subprocess.STDOUT` is where the former goes.
    """

    def __init__(
        self, *arguments: str, cwd: Path = ROOT, env: Any = os.environ, stdout: Any = None, stderr: Any = None
    ) -> None:
        assert arguments[0] == "-m"
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends: list[int] = []
        for given in (stdout, stderr):
            if given == subprocess.PIPE:
                read, write = os.pipe()
                self.stdout = os.fdopen(read)
                ends.append(write)
            elif given == subprocess.STDOUT:
                ends.append(os.dup(ends[0]))
            else:
                ends.append(os.open(os.devnull, os.O_WRONLY) if given is None else os.dup(given.fileno()))
        request = {"arguments": arguments[1:], "cwd": str(cwd), "env": dict(env)}
        requests, _ = _server()
        socket.send_fds(requests, [json.dumps(request).encode()], [status.fileno(), *ends])
        status.close()
        for end in ends:
            os.close(end)
        self.pid = int(self._status.recv(100))
        self.returncode: int | None = None

    def send_signal(self, signum: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, signum)

    def communicate(self, timeout: float | None = None) -> tuple[int, str]:
        """The exit code, see `wait`, and what it printed into its pipe."""
        output = self.stdout.read()
        return self.wait(timeout), output

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for the signal that ended it.

        Raises:
            TimeoutError: it runs longer than `timeout` seconds; it has been killed then.
        """
        self._status.settimeout(timeout)
        if self.returncode is None:
            try:
                self.returncode = int(self._status.recv(100))
            except TimeoutError:
                os.killpg(self.pid, signal.SIGKILL)
                raise
        return self.returncode


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that is forked, and where to send requests to it; it ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], stdin=there, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
    there.close()
    return here, process


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks who waits for a command, and the command, in which this returns with the request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        message, received, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return None
        if os.fork() == 0:
            break
        for descriptor in received:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status, *ends = received
    command = os.fork()
    if command:
        for end in ends:
            os.close(end)
        os.write(status, str(command).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        os.write(status, str(code).encode())
        os._exit(0)
    os.setsid()
    for end, standard in zip(ends, (1, 2), strict=True):
        os.dup2(end, standard)
        os.close(end)
    os.close(status)
    os.dup2(os.open(os.devnull, os.O_RDONLY), requests.fileno())
    return json.loads(message)


def _main() -> None:
    requests = socket.socket(fileno=0)
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that collects garbage would write to, and so copy, every page
    request = _serve(requests)
    requests.detach()
    if request is None:
        os._exit(0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["cwd"]
    sys.argv = request["arguments"]
    sys.orig_argv[1:] = ["-m", *sys.argv]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = None
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        code = stopped.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # without taking all modules apart, which would copy every page


if __name__ == "__main__":
    _main()
