"""A page to play with, beside a cascade's API: its own files, nothing foreign; it asks the API as any client does."""

from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.responses import Response

from serve_apps.service.access import name_check
from serve_apps.service.limits import ServiceLimits

PLAY = "/play"
_FOLDER = Path(__file__).parent
_FILES = {PLAY: ("index.html", "text/html"), f"{PLAY}/style.css": ("style.css", "text/css")}
_FILES |= {f"{PLAY}/{name}": (name, "text/javascript") for name in ("panels.js", "play.js")}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_playground(app: FastAPI, limits: ServiceLimits) -> None:
    """The page and its files. They hold nothing that is secret and are there without the token, which the page asks for."""
    for path, (name, kind) in _FILES.items():
        content = (_FOLDER / name).read_bytes()

        async def file(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=_HEADERS)

        app.add_api_route(path, file, dependencies=[Depends(name_check(limits.token_sha256))], include_in_schema=False)
