"""Key of a comparison with Casbin: the hash of all that its outcome depends on, so that it needn't be repeated."""

import hashlib
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from rolecall.policy.parsed import PolicyFiles

__all__ = ["comparison_key"]

# Their code decides, here and in Casbin. A version number would miss a patched copy, and a change of a working tree.
_PACKAGES = ("rolecall.domain", "rolecall.policy", "casbin", "simpleeval")


def comparison_key(files: PolicyFiles) -> str:
    """Return the key for these files: a hash of the model, the rules, the deciding code, and Python's version.

    Empty where the code can't be read: such a comparison is always repeated.
    """
    code = _code()
    if not code:
        return ""
    digest = hashlib.sha256(code)
    for text in (files.model, files.policy):
        # Hashed by itself, so that no text can look like the end of one and the beginning of the next.
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


@lru_cache
def _code() -> bytes:
    digest = hashlib.sha256(sys.version.encode())
    for package in _PACKAGES:
        try:
            sources = _sources(package)
            digest.update(f"{package} {len(sources)}".encode())
            for path in sources:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        except (ImportError, OSError):
            return b""
        if not sources:
            return b""
    return digest.digest()


def _sources(package: str) -> list[Path]:
    """Return the source files of a package or module, in a fixed order. Doesn't import it."""
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return []
    if spec.submodule_search_locations:
        return sorted(Path(spec.origin).parent.rglob("*.py"))
    return [path for path in [Path(spec.origin)] if path.suffix == ".py"]
