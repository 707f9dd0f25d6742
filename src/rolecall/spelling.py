"""Spelling of names: which known name an unknown one may be meant to be."""

from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["nearest", "suggest"]

# Maximum names that are searched for a similar spelling: among more, the search takes too long.
MAX_NAMES = 2000
# Minimum similarity, by difflib's ratio, of a name that is suggested.
MIN_SIMILARITY = 0.6


def nearest(word: str, names: Collection[str]) -> str:
    """Return the name that is most similar to `word`, in any case; empty if none is similar."""
    if len(names) > MAX_NAMES:
        return ""
    spelled = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), spelled, n=1, cutoff=MIN_SIMILARITY)
    return spelled[close[0]] if close else ""


def suggest(word: str, names: Collection[str], otherwise: str) -> str:
    """Return the advice about an unknown name: the nearest name if there is one, and `otherwise`."""
    near = nearest(word, names)
    return f"did you mean `{near}`? Otherwise {otherwise}" if near else otherwise
