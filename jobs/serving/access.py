"""Who may ask: a token that each request brings, as programs and as browsers send it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/healthz",)
"""Addresses that answer without a token, for those who watch a server."""


class TokenGate:
    """Refuse requests without the token: `Authorization: Bearer TOKEN`, or the password that a browser asks for."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = token_in(Headers(scope=scope).get("authorization", "")) if scope["type"] == "http" else b""
        if scope["type"] != "http" or scope["path"] in OPEN or hmac.compare_digest(given, self.token):
            await self.app(scope, receive, send)
            return
        ask = {"WWW-Authenticate": 'Basic realm="snps3", charset="UTF-8"'}
        error = "a token is needed: Authorization: Bearer TOKEN, or as the password of any user"
        await JSONResponse({"error": error}, 401, ask)(scope, receive, send)


def token_in(authorization: str) -> bytes:
    """Return the token in a header; nothing where there is none."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.encode()
    with contextlib.suppress(binascii.Error):
        if kind.lower() == "basic":
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""
