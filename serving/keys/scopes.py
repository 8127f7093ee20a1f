"""What a key must be allowed for each path: default deny, so a path that is not listed wants `admin`.

What is matched is what the router matches, the path that the server has parsed, by the router's own patterns.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, get_args

Scope = Literal["predict", "read", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
# No key is wanted.
OPEN = "open"

# Asked by load balancers and by Kubernetes, which have no keys; they tell nothing but "yes" or "not now".
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
# The page for people is the same whoever opens it and whatever is served; what it shows, it asks for with a key that it is given.
_OPEN = (*PROBES, "/")
_PREDICT = (
    "/v1/predict",
    "/v1/explain",
    "/v1/classifications",
    "/predict",
    "/classify",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
)
_READ = (
    "/docs",
    "/openapi.json",
    "/metrics",
    "/v1/version",
    "/v2",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
)
SCOPE_OF: Mapping[str, str] = {path: scope for scope, paths in ((OPEN, _OPEN), ("predict", _PREDICT), ("read", _READ)) for path in paths}


class Route(Protocol):
    """What is asked of a route; Starlette's are some."""

    path: str
    path_regex: re.Pattern[str]


class Wanted:
    """Which scope a path wants.

    Args:
        routes: Of the application.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        listed = [(route, SCOPE_OF.get(route.path, "admin")) for route in routes]
        self._plain = {route.path: scope for route, scope in listed if "{" not in route.path}
        self._patterns = [(route.path_regex, scope) for route, scope in listed if "{" in route.path]

    def __call__(self, path: str) -> str:
        """Return the scope, or `OPEN`."""
        plain = self._plain.get(path)
        return plain or next((scope for pattern, scope in self._patterns if pattern.match(path)), "admin")
