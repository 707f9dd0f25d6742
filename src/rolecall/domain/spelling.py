"""Spelling of names: which known name an unknown one may be meant to be."""

from collections.abc import Collection
from difflib import SequenceMatcher

__all__ = ["nearest", "suggest"]

# Maximum names that are searched for a similar spelling: among more, the search takes too long.
MAX_NAMES = 2000
# Minimum similarity, by difflib's ratio, of a name that is suggested.
MIN_SIMILARITY = 0.6


def nearest(word: str, names: Collection[str], min_similarity: float = MIN_SIMILARITY) -> str:
    """Return the name that is most similar to `word`, in any case; empty if none is similar.

    Of equally similar names it is the shortest: `database`, and not `database_file`, for `database_url`.
    """
    if len(names) > MAX_NAMES:
        return ""
    matcher = SequenceMatcher(b=word.lower())
    similar: list[tuple[float, int, str]] = []
    for name in names:
        matcher.set_seq1(name.lower())
        # Upper bounds of the ratio first, which are computed faster.
        ratios = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(ratio() >= min_similarity for ratio in ratios):
            similar.append((-matcher.ratio(), len(name), name))
    return min(similar)[2] if similar else ""


def suggest(word: str, names: Collection[str], otherwise: str) -> str:
    """Return the advice about an unknown name: the nearest name if there is one, and `otherwise`."""
    near = nearest(word, names)
    return f"did you mean `{near}`? Otherwise {otherwise}" if near else otherwise
