"""Serve the page of an index on this machine's loopback until Ctrl-C."""

from __future__ import annotations

import errno
import os
import socket
import sys
import webbrowser

import uvicorn

from jobs.inference.query import SearchConfig, index_of
from jobs.serving.app import LOOPBACK, make_app
from jobs.serving.library import Library
from jobs.tracking import voice

MAX_HEADER_BYTES = 2**18
"""Limit of a request's header, so large that a much too long question still gets the error message with its limit."""


def serve(config: SearchConfig) -> None:
    """Serve until this process is stopped. Raise ValueError for a taken port, or an index of another model."""
    with listening(config.port) as listener:  # first, so that a taken port fails before the model loads
        library = Library.open(index_of(config.index, config.run), config.run, rerank=config.rerank)
        show_page(library, listener)


def show_page(library: Library, listener: socket.socket) -> None:
    """Open the page of a library in a browser, if there is a screen, and serve until this process is stopped."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    voice.show(f"{url} shows {len(library.index)} moments of {len(library.files.uris)} files; Ctrl-C ends it")
    if has_screen():
        webbrowser.open(url)
    make_server(make_app(library)).run(sockets=[listener])


def make_server(app: object) -> uvicorn.Server:
    """Return a server of `app` that uses the logging of its process."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,  # a browser that plays a video keeps its connection
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
    )


def listening(port: int, host: str = LOOPBACK[0]) -> socket.socket:
    """Return a socket that listens on `host` and `port`; 0: any free port. Raise ValueError for an unavailable port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken by another process" if taken else f"cannot be listened on ({error})"
        raise ValueError(f"port {port} {reason}; name another with --port, or 0 for any that is free") from error
    return listener


def has_screen() -> bool:
    """Return whether a browser would open a window instead of taking over the terminal."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
