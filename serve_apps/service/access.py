"""Who may ask: the bearer token, loopback without one.

They are coroutines, though they wait for nothing: FastAPI hands any other dependency to a thread, which takes a millisecond.
"""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable

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


def name_check(expected_sha256: str | None) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency. Without a token a request must name this machine by a loopback name: a web page that has its own name
    point to 127.0.0.1 (DNS rebinding) sends that name, and gets 403."""

    async def check(request: Request) -> None:
        if expected_sha256 is None and not is_loopback(_without_port(request.headers.get("host", ""))):
            raise HTTPException(403, f"Without a token only 127.0.0.1 and localhost are answered: set {TOKEN_VARIABLE}")

    return check


def access_check(expected_sha256: str | None) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency. With a token: 401 for a request without it. Without: 403 for one that came not over loopback, or
    names another host."""
    named = name_check(expected_sha256)

    async def check(request: Request) -> None:
        if expected_sha256 is None:
            server = request.scope.get("server")
            if server is None or not is_loopback(server[0]):
                raise HTTPException(
                    403, f"Without a token only loopback is served: set {TOKEN_VARIABLE} for the service"
                )
            await named(request)
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, expected_sha256):
            raise HTTPException(401, "A valid bearer token is needed", {"WWW-Authenticate": "Bearer"})

    return check


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
