"""The OpenAPI document as a page to read: made here, without a script: nothing foreign is loaded or sees a token."""

import json
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code,pre{background:#f4f4f4}"
    "pre{padding:1em;overflow:auto;max-height:30em}td{padding:.1em 1em .1em 0;vertical-align:top}"
)


def docs_page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: each route, what it takes and what it answers."""
    info = document["info"]
    routes = [
        _route(path, method, route, document)
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(info.get('description', ''))} "
        f"For programs: <a href=openapi.json>openapi.json</a>.</p>{''.join(routes)}</html>"
    )


def _route(path: str, method: str, route: dict[str, Any], document: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(status)}<td>{escape(answer.get('description', ''))}"
        for status, answer in route["responses"].items()
    )
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    taken = "" if body is None else f"<p>takes</p><pre>{escape(json.dumps(_resolved(body, document), indent=2))}</pre>"
    good = route["responses"].get("200", route["responses"].get("201", {}))
    answered = good.get("content", {}).get("application/json", {}).get("schema")
    given = (
        "" if not answered else f"<p>gives</p><pre>{escape(json.dumps(_resolved(answered, document), indent=2))}</pre>"
    )
    return (
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(route.get('description', ''))}</p>"
        f"{taken}{given}<table>{rows}</table>"
    )


def _resolved(schema: Any, document: dict[str, Any], depth: int = 4) -> Any:
    """With what it refers to in its place, some levels deep."""
    if isinstance(schema, list):
        return [_resolved(inner, document, depth) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and depth:
        named = document["components"]["schemas"].get(reference.rpartition("/")[2], schema)
        return _resolved(named, document, depth - 1)
    return {key: _resolved(inner, document, depth) for key, inner in schema.items()}
