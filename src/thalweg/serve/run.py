"""A server on a socket until it is told to end: the first signal lets requests finish, the second does not."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from thalweg.errors import InvalidInputError
from thalweg.serve.app import make_app
from thalweg.serve.logs import log_event
from thalweg.serve.protocol import bounded
from thalweg.serve.server import Server

BACKLOG = 2048
"""Connections that wait to be accepted."""


class Runner(uvicorn.Server):
    """Runs a `Server`, and ends as described above.

    Args:
        server: it is closed at the end.
        certificate, certificate_key: files of TLS.
    """

    def __init__(self, server: Server, certificate: Path | None = None, certificate_key: Path | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(server),
                http=bounded(server.settings.header_timeout),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                ssl_certfile=certificate,
                ssl_keyfile=certificate_key,
            )
        )
        self._server = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's would end at once for a second SIGINT only, and raise the signals again at the end."""
        self.force_exit = self.should_exit
        self.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's leaves the application's own end out where it is to be quick."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def drain(self) -> None:
        """Take no more connections, and end when all requests are answered."""
        self.should_exit = self._server.draining = True
        log_event("ending", at_once=self.force_exit)

    def run_on(self, where: socket.socket) -> None:
        """Serve on a bound socket."""
        try:
            self.run([where])
        finally:
            self._server.close()
            log_event("ended")


def check_exposure(host: str, *, has_keys: bool, insecure: bool) -> None:
    """Whoever reaches the server can use it: others than this machine only with a key.

    Raises:
        InvalidInputError: they could without.
    """
    if has_keys or insecure or _is_loopback(host):
        return
    raise InvalidInputError(
        f"on {host} everybody who reaches this machine could use the server: give it an API key (--api-key-file, "
        "THALWEG_API_KEY), bind it to 127.0.0.1, or say --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(each).partition("%")[0]).is_loopback for each in found)


@contextmanager
def bound_socket(host: str, port: int, uds: Path | None) -> Iterator[tuple[socket.socket, str]]:
    """A socket, and the URL that leads to it.

    Args:
        uds: where to make a unix socket instead, which only this user and group can use; it goes with the server.

    Raises:
        OSError: naming what is taken, or cannot be used.
    """
    if uds is not None:
        with _unix_socket(uds) as sock:
            yield sock, f"unix:{uds}"
        return
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with sock:
        name = f"[{host}]" if family == socket.AF_INET6 else host
        yield sock, f"http://{name}:{sock.getsockname()[1]}"


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidInputError("--uds-path: this system has no unix sockets; use --host and --port")
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        before = os.umask(0o117)
        try:
            sock.bind(str(path))
        except OSError as error:
            raise OSError(f"cannot listen on {path}: {error.strerror or error}") from error
        finally:
            os.umask(before)
        try:
            sock.listen(BACKLOG)
            yield sock
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed server left. Anything else stays."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError(f"cannot listen on {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(f"cannot listen on {path}: another server does")
