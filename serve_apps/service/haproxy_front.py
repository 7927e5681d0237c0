"""Starts HAProxy with Serve's configuration, closed further. Serve runs this in place of the binary, at each start and reload:

    python haproxy_front.py FOLDER BINARY -db -f CONFIG ...

Serve writes CONFIG anew each time and has no setting for most of what is needed here; it is changed in place, because Serve knows
its processes by that file. Only the standard library: it starts in 20 ms.
"""

import os
import re
import sys
from pathlib import Path

HOST_FILE = "host"  # in FOLDER: where to listen, if elsewhere than Serve's own servers
_HEADERS = 64  # of a request; their bytes are bounded by the buffer, which must hold all of them
_BODY_S = 10  # in which a request must be there, up to the size of the buffer
_NOT_REPEATABLE = ("/v1/items",)  # POST to any other path changes nothing and may be asked twice
_DETAIL = '{"detail": "No replica can answer; try again"}'
_UNAVAILABLE = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    f"Content-Length: {len(_DETAIL)}\r\n\r\n{_DETAIL}"
)


def closed(config: str, host: str | None, unavailable: str) -> str:
    """``config`` without servers of statistics and metrics (nothing here reads them), with bounds on what a client may send.

    A 500 of the server that is asked while no replica is up becomes a 503.

    host: where to listen; None = where Serve says. unavailable: file of the reply when no replica can answer.
    """
    sections = re.split(r"(?m)^(?=\S)", config)
    kept = [s for s in sections if not s.startswith(("frontend prometheus", "listen stats"))]
    front = next(i for i, s in enumerate(kept) if s.startswith("frontend http_frontend"))
    rules = [
        "option http-buffer-request",  # half a request takes no replica's time
        f"timeout http-request {_BODY_S}s",
        "http-request deny deny_status 404 if { path -i -m beg /-/routes }",  # names applications, and needs no token
        *(f"http-request disable-l7-retry if {{ path {path} }}" for path in _NOT_REPEATABLE),
        "http-request set-header x-request-disconnect-disabled ?1",  # requests are short: watching each client costs more
    ]
    bind = re.compile(r"(?m)^ *bind (\S+):(\d+).*\n")
    found = bind.search(kept[front])
    assert found is not None
    address = found[0] if host is None else f"    bind {f'[{host}]' if ':' in host else host}:{found[2]}\n"
    if host is None and ":" in found[1]:  # an address of IPv6, which Serve writes without brackets
        address = f"    bind [{found[1].strip('[]')}]:{found[2]}\n"
    kept[front] = kept[front].replace(found[0], address + "".join(f"    {rule}\n" for rule in rules), 1)
    joined = re.sub(r"(?m)^global$", f"global\n    tune.http.maxhdr {_HEADERS}", "".join(kept), count=1)
    joined = re.sub(
        r"(?m)^ *server (\S+) .*\bbackup$", lambda line: f"{line[0]}\n    {_unavailable_from(line[1])}", joined
    )
    return re.sub(r"(?m)^( *errorfile \d+ ).*$", lambda line: line[1] + unavailable, joined)


def _unavailable_from(server: str) -> str:
    """While no replica is up HAProxy asks Serve's own proxy, which waits for one; its controller dead too, that says 500."""
    answer = f"status 503 content-type application/json hdr Retry-After 1 string '{_DETAIL}'"
    return f"http-response return {answer} if {{ status 500 }} {{ srv_name -m str {server} }}"


def main(folder: str, binary: str, *arguments: str) -> None:
    config = Path(arguments[arguments.index("-f") + 1])
    unavailable = Path(folder, "unavailable.http")
    unavailable.write_bytes(_UNAVAILABLE.encode())
    host = Path(folder, HOST_FILE)
    config.write_text(closed(config.read_text(), host.read_text() if host.exists() else None, str(unavailable)))
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
