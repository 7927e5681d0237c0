"""Services that answer requests by Ray Serve, each a folder."""

import rayrec  # noqa: F401 - before all else that replicas import: it sets how often Python looks for cycles meanwhile
