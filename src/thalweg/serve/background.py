"""A server in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from thalweg.embedder.embedder import Embedder
from thalweg.serve.keys import Keys
from thalweg.serve.run import Runner, bound_socket, check_exposure
from thalweg.serve.server import Server
from thalweg.serve.settings import Settings


@contextmanager
def serving(
    models: Embedder | Mapping[str, Embedder],
    *,
    settings: Settings | None = None,
    api_keys: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[str]:
    """Serve while a `with` block runs: in a notebook, a test, beside other work. See docs/serving.md.

    The models can be used as before meanwhile. Load them with `special_tokens="text"` where strangers send texts.

    Args:
        models: one, under its own name, or several by the names under which they are served, the default one first.
        settings: the bounds of the server.
        api_keys: the key of each client, by a name for it; None: no key is needed.
        host, port: where it listens; port 0 is any that is free.

    Yields:
        The URL of the server.

    Raises:
        InvalidInputError: a host that others reach, without keys.
        OSError: the port is taken.
    """
    check_exposure(host, has_keys=bool(api_keys), insecure=False)
    named = {models.name: models} if isinstance(models, Embedder) else models
    with bound_socket(host, port, None) as (where, url):
        runner = Runner(Server(named, settings, Keys(api_keys)))
        thread = threading.Thread(target=runner.run_on, args=[where], name="thalweg-server")
        thread.start()
        try:
            while not runner.started and thread.is_alive():
                time.sleep(0.01)
            yield url
        finally:
            runner.drain()
            thread.join()
