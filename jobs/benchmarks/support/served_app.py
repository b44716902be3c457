"""A server in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from jobs.serving.server import listening, make_server


@contextlib.contextmanager
def served_app(app: object) -> Iterator[int]:
    """Serve `app`, and yield the port."""
    with listening(0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
