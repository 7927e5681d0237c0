"""Who may ask, and how much: the bearer token, loopback without one, the size of a body."""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Callable

from fastapi import HTTPException, Request

TOKEN_VARIABLE = "RAYREC_TOKEN"


def token_sha256() -> str | None:
    """Hex digest of ``$RAYREC_TOKEN``; None when it is unset or empty."""
    token = os.environ.get(TOKEN_VARIABLE)
    return hashlib.sha256(token.encode()).hexdigest() if token else None


def is_loopback(host: str) -> bool:
    """Whether an address (or "localhost") is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def access_check(expected_sha256: str | None) -> Callable[[Request], None]:
    """A FastAPI dependency. With a token: 401 for a request without it. Without: 403 for one that came not over loopback."""

    def check(request: Request) -> None:
        if expected_sha256 is None:
            server = request.scope.get("server")
            if server is None or not is_loopback(server[0]):
                raise HTTPException(
                    403, f"Without a token only loopback is served: set {TOKEN_VARIABLE} for the service"
                )
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, expected_sha256):
            raise HTTPException(401, "A valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    return check


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a JSON request; 415 for another content type, 413 beyond ``max_bytes`` without reading on."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "Content-Type must be application/json")
    too_large = HTTPException(413, f"The body may have at most {max_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)
