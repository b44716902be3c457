"""Access control: each request carries a token, as a bearer token or as a browser's password."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/healthz",)
"""Paths that need no token, for health checks."""


class TokenGate:
    """Rejects requests without the token: `Authorization: Bearer TOKEN`, or the password of basic authentication."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = token_in(Headers(scope=scope).get("authorization", "")) if scope["type"] == "http" else b""
        if scope["type"] != "http" or scope["path"] in OPEN or hmac.compare_digest(token, self.token):
            await self.app(scope, receive, send)
            return
        challenge = {"WWW-Authenticate": 'Basic realm="snps3", charset="UTF-8"'}
        error = "a token is needed: Authorization: Bearer TOKEN, or as the password of any user"
        await JSONResponse({"error": error}, 401, challenge)(scope, receive, send)


def token_in(authorization: str) -> bytes:
    """Return the token in an Authorization header, or empty bytes."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.encode()
    with contextlib.suppress(binascii.Error):
        if kind.lower() == "basic":
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""
