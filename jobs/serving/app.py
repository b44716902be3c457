"""The page and its JSON API as an ASGI application.

| address | answer |
|---|---|
| `/` | the page, one file |
| `/api/index` | counts, folders, longest file |
| `/api/search?q=…` or `?like=ROW`, with filters, `num` and `rerank` | moments, best first |
| `/api/like`, a POST of a picture or video as `application/octet-stream` | the moments like it |
| `/api/around/ROW` | the windows next to one |
| `/strips/ROW` | frames of a window, a JPEG |
| `/files/NUMBER` | a file of the index, or a byte range of it |
| `/openapi.json` | the OpenAPI document |
| `/healthz` | `ok` once the server answers questions |

Requests name a file by its number in the index, so no path of a request reaches the disk.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import mimetypes
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.inference.indexed_files import Filters, UndatedError
from jobs.inference.query import NoCrossEncoderError, refuse_long
from jobs.inference.window_index import ChangedIndexError
from jobs.serving.access import TokenGate
from jobs.serving.library import Library
from jobs.serving.openapi import description
from jobs.serving.replicas import Replicas
from pipeline import storage
from pipeline.records import DecodeError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PAGE = Path(__file__).with_name("page.html").read_text()
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
BYTES_AT_ONCE = 2**20
MAX_UPLOAD_BYTES = 2**26
UPLOAD_TYPE = "application/octet-stream"
NEIGHBOURS = 3


class AnswerError(Exception):
    """Raised for a request that cannot be answered, with an HTTP status and a message for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Question(BaseModel):
    """The parameters of `/api/search`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    q: str = ""
    """A sentence about what happens."""
    like: int | None = Field(None, ge=0)
    """Row of a moment whose like is looked for, in place of a sentence."""
    folder: str = ""
    """Below the root of the videos."""
    min_seconds: float = Field(0.0, ge=0)
    max_seconds: float = Field(float("inf"), ge=0)
    """Of the whole file."""
    since: datetime.date | None = None
    until: datetime.date | None = None
    """Days of the last change of the file."""
    num: int = Field(24, ge=1, le=200)
    """Moments."""
    rerank: int | None = Field(None, ge=0, le=1000)
    """Windows that the cross encoder puts in order; 0: none."""

    @property
    def filters(self) -> Filters:
        """The filters on files. Raises AnswerError for contradictory ones."""
        try:
            return Filters(**{field.name: getattr(self, field.name) for field in fields(Filters)})
        except ValueError as error:
            raise AnswerError(400, str(error)) from error


def make_app(library: Library | Replicas, *, hosts: Sequence[str] = LOOPBACK, token: str | None = None) -> Starlette:
    """Return the application. `hosts`: accepted host names; others are rejected, against DNS rebinding. `token`:
    required in each request except `/healthz`."""
    pages = Pages(library)
    routes = [
        Route("/", pages.page),
        Route("/healthz", pages.health),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Route("/api/index", pages.index),
        Route("/api/search", pages.search),
        Route("/api/like", pages.like, methods=["POST"]),
        Route("/api/around/{row:int}", pages.around),
        Route("/strips/{row:int}", pages.strip),
        Route("/files/{number:int}", pages.file),
        Route("/openapi.json", lambda request: JSONResponse(description(Question, UPLOAD_TYPE))),
    ]
    gate = [Middleware(TokenGate, token=token)] if token else []
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(WithHeaders, headers=security_headers(PAGE)),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False),
            *gate,
        ],
        exception_handlers={
            AnswerError: in_words,
            UndatedError: in_words,
            NoCrossEncoderError: in_words,
            ChangedIndexError: changed,
            TimeoutError: busy,
            Exception: failed,
        },
    )


class Pages:
    """The handlers of the paths."""

    def __init__(self, library: Library | Replicas) -> None:
        self.library = library

    def page(self, request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(PAGE)

    def health(self, request: Request) -> Response:
        """Report that the server answers questions."""
        return JSONResponse({"status": "ok"})

    def index(self, request: Request) -> Response:
        """Return the facts of the index, which the page loads first."""
        return JSONResponse(self.library.facts())

    def search(self, request: Request) -> Response:
        """Return the moments for a sentence, or those like another moment."""
        question = question_of(dict(request.query_params))
        if question.like is not None:
            row = self.row(question.like)
            moments = self.library.like(row, question.filters, num=question.num)
        else:
            moments = self.library.by_text(question.q, question.filters, num=question.num, rerank=question.rerank)
        return JSONResponse({"moments": [asdict(moment) for moment in moments]})

    async def like(self, request: Request) -> Response:
        """Return the moments like an uploaded picture or video."""
        question = question_of(dict(request.query_params), is_upload=True)
        media = await body_of(request)
        try:
            moments = await run_in_threadpool(self.library.like_media, media, question.filters, num=question.num)
        except DecodeError as error:
            raise AnswerError(400, f"the upload cannot be read ({error.reason}): {error.detail}") from error
        return JSONResponse({"moments": [asdict(moment) for moment in moments]})

    def around(self, request: Request) -> Response:
        """Return the windows next to one."""
        moments = self.library.around(self.row(request.path_params["row"]), reach=NEIGHBOURS)
        return JSONResponse({"moments": [asdict(moment) for moment in moments]})

    def strip(self, request: Request) -> Response:
        """Return the frames of a window."""
        try:
            return Response(self.library.strip(self.row(request.path_params["row"])), media_type="image/jpeg")
        except FileNotFoundError as error:
            raise AnswerError(404, str(error)) from error

    def file(self, request: Request) -> Response:
        """Return a file of the index, or the requested byte range of it."""
        number, files = request.path_params["number"], self.library.files
        if number >= len(files.uris):
            raise AnswerError(404, f"the index has {len(files.uris)} files, and none with the number {number}")
        uri, media_type = files.uris[number], media_type_of(files.uris[number])
        gone = AnswerError(404, f"{files.names[number]} is gone since it was indexed; run snps3 embed again")
        if storage.is_remote(uri):
            return remote_file(uri, media_type, request.headers.get("range"), gone)
        try:
            status = os.stat(uri)
        except OSError as error:
            raise gone from error
        if not stat.S_ISREG(status.st_mode):
            raise gone
        return FileResponse(uri, media_type=media_type, stat_result=status)

    def row(self, row: int) -> int:
        """Return `row` if the index has it; raise AnswerError otherwise."""
        if row >= (count := len(self.library.files.of_row)):
            raise AnswerError(404, f"the index has {count} windows, and no row {row}")
        return row


async def body_of(request: Request) -> bytes:
    """Return the uploaded bytes. Raise AnswerError for more than `MAX_UPLOAD_BYTES`, and for a content type that a form
    of another site may send without a CORS preflight."""
    if request.headers.get("content-type") != UPLOAD_TYPE:
        raise AnswerError(415, f"upload the bytes of a picture or video as {UPLOAD_TYPE}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_UPLOAD_BYTES:
            raise AnswerError(413, f"an upload has at most {MAX_UPLOAD_BYTES // 2**20} MiB: cut out what matters")
    return bytes(body)


def question_of(parameters: dict[str, str], *, is_upload: bool = False) -> Question:
    """Parse the parameters of a search. Raise AnswerError that names the invalid one."""
    try:
        question = Question.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise AnswerError(400, f"{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:80]!r}") from error
    try:
        refuse_long(question.q)
    except ValueError as error:
        raise AnswerError(400, str(error)) from error
    if question.like is None and not question.q.strip() and not is_upload:
        raise AnswerError(400, "q is empty: say what is looked for")
    return question


def media_type_of(path: str) -> str:
    """Return the media type of a video or picture by its name; `application/octet-stream` for anything else, since a
    browser might run it."""
    guess = mimetypes.guess_type(path.rpartition("/")[2])[0] or ""
    return guess if re.fullmatch(r"(video|image)/(?!svg)[\w.+-]+", guess) else "application/octet-stream"


def remote_file(uri: str, media_type: str, asked: str | None, gone: AnswerError) -> Response:
    """Return the byte range `asked` of a file in a bucket; the whole file without a valid range."""
    try:
        size = storage.read_with(uri, lambda file: file.seek(0, os.SEEK_END))
    except FileNotFoundError as error:
        raise gone from error
    match = RANGE.fullmatch(asked or "")
    start = int(match[1]) if match else 0
    stop = min(size, int(match[2]) + 1) if match and match[2] else size
    if match and start >= stop:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if match:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return StreamingResponse(parts_of(uri, start, stop), 206 if match else 200, headers, media_type)


def parts_of(uri: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file in pieces of `BYTES_AT_ONCE`."""
    for first in range(start, stop, BYTES_AT_ONCE):
        yield storage.read_bytes(uri, first, min(first + BYTES_AT_ONCE, stop))


def in_words(request: Request, error: Exception) -> Response:
    """Answer with the error's message."""
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, AnswerError) else 400)


def changed(request: Request, error: Exception) -> Response:
    """Answer that the index was rewritten, so that its rows have changed."""
    return JSONResponse({"error": "the index was written anew since it was opened: start snps3 search again"}, 409)


def busy(request: Request, error: Exception) -> Response:
    """Answer that no replica is available."""
    return JSONResponse({"error": f"{error}: ask again in some seconds"}, 503, {"Retry-After": "5"})


def failed(request: Request, error: Exception) -> Response:
    """Answer that an unexpected error occurred; the server logs its traceback."""
    return JSONResponse({"error": f"this failed unexpectedly ({type(error).__name__}); the log has its traceback"}, 500)


def security_headers(page: str) -> list[tuple[bytes, bytes]]:
    """Return headers that restrict a page to its own script and host, and keep other sites from reading it."""

    def hashes(tag: str) -> str:
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self'; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class WithHeaders:
    """Adds headers to every response."""

    def __init__(self, app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
