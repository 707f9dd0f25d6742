"""For each action, which rules cover a resource: as bits, found with one look-up where the resource is named.

An entry holds the bits of all rules that cover its path, those of its parents included, so the walk from a resource
up through its parents ends at the first entry it meets. Equal masks are one object: they stay in the processor's cache
however many paths there are.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Entry", "Table", "build_table", "covering", "share_masks"]


class _Stems(NamedTuple):
    """An entry whose path has rules on `path/stem*`. The lists run parallel, sorted by stem."""

    mask: int
    stems: list[str]
    # With each stem's bits come those of the shorter stems that it begins with, and the path's own.
    masks: list[int]
    # The position of the longest other stem that this one begins with; -1 for none.
    shorter: list[int]


class _Stem(NamedTuple):
    """An entry whose path has one rule `path/stem*`, the usual case: kept flat, as every hop may miss the cache."""

    mask: int
    stem: str
    below: int


Entry = int | _Stem | _Stems
# The one key that is no string makes CPython keep the hashes beside the keys: a look-up that fails then touches no
# other key, which is a tenth of the time of a decision among 100,000 rules.
Table = dict[str | None, Entry]


def covering(table: Table, resource: str, path: str) -> int:
    """The bits of the rules that cover `resource`, looking from `path`, which is it or a parent of it, upwards."""
    entry = table.get(path)
    while entry is None:
        cut = path.rfind("/")
        path = path[:cut] if cut > 0 else ""
        entry = table.get(path)
    if isinstance(entry, int):
        return entry
    if path:
        if len(path) == len(resource):
            return entry[0]
        resource = resource[len(path) + 1 :]
    if isinstance(entry, _Stem):
        return entry[2] if resource.startswith(entry[1]) else entry[0]
    mask, stems, masks, shorter = entry
    at = bisect_right(stems, resource) - 1
    while at >= 0:
        if resource.startswith(stems[at]):
            return masks[at]
        at = shorter[at]
    return mask


def share_masks(tables: Iterable[Table]) -> None:
    """Make equal masks one object, in all of the tables."""
    shared: dict[int, int] = {}
    for table in tables:
        for path, entry in table.items():
            if isinstance(entry, int):
                table[path] = shared.setdefault(entry, entry)
            elif isinstance(entry, _Stem):
                mask, below = (shared.setdefault(mask, mask) for mask in (entry.mask, entry.below))
                table[path] = _Stem(mask, entry.stem, below)
            else:
                masks = [shared.setdefault(mask, mask) for mask in entry.masks]
                table[path] = entry._replace(mask=shared.setdefault(entry.mask, entry.mask), masks=masks)


def build_table(rules: Iterable[tuple[str, int]]) -> Table:
    """The table of (resource pattern, bit) pairs."""
    exact: dict[str, int] = {"": 0}
    starred: dict[str, dict[str, int]] = {}
    for pattern, bit in rules:
        if pattern.endswith("*"):
            path, _, stem = pattern[:-1].rpartition("/")
            stems = starred.setdefault(path, {})
            stems[stem] = stems.get(stem, 0) | bit
        else:
            exact[pattern] = exact.get(pattern, 0) | bit
    table: Table = {None: 0}
    # Parents come before what is beneath them.
    for path in sorted(exact.keys() | starred.keys(), key=len):
        above = covering(table, path, path.rpartition("/")[0]) if path else 0
        mask = above | exact.get(path, 0)
        table[path] = _stems(mask, starred[path]) if path in starred else mask
    return table


def _stems(mask: int, own: dict[str, int]) -> Entry:
    if len(own) == 1:
        ((stem, bits),) = own.items()
        return _Stem(mask, stem, mask | bits)
    stems = sorted(own)
    masks: list[int] = []
    shorter: list[int] = []
    for i, stem in enumerate(stems):
        at = i - 1
        while at >= 0 and not stem.startswith(stems[at]):
            at = shorter[at]
        masks.append(own[stem] | (masks[at] if at >= 0 else mask))
        shorter.append(at)
    return _Stems(mask, stems, masks, shorter)
