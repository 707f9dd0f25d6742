"""Scopes: paths that contain resources. The empty scope contains everything."""

from collections.abc import Iterator

__all__ = ["ORGANIZATION", "covering_scopes", "covers"]

# The scope of the whole organization.
ORGANIZATION = ""


def covers(scope: str, path: str) -> bool:
    """Return whether `path`, a scope or a resource, is `scope` or beneath it."""
    return not scope or path == scope or (path.startswith(scope) and path[len(scope)] == "/")


def covering_scopes(path: str) -> Iterator[str]:
    """Yield every scope that covers `path`, from the widest to `path` itself."""
    yield ORGANIZATION
    if path:
        yield from (path[:i] for i, character in enumerate(path) if character == "/")
        yield path
