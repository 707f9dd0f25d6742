"""All benchmarks over gRPC: `make bench-full`. Needs h2load; measures PostgreSQL if its server is installed."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import assigned
import beside
import checks
import scale
import several
import steady
from report import Figure, quiet, report, table
from sites import create_site

PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "checks": lambda folder: checks.measure(create_site(folder, checks.MEMBERS)),
    "assignments": assigned.of_a_member,
    "many-assignments": assigned.of_many,
    "workers": several.workers,
    "members": scale.of_members,
    "rules": scale.of_rules,
    "unknown-subjects": beside.unknown_subjects,
    "burning": beside.a_burning_call,
    "log": beside.a_decision_log,
    "revocation": several.revocation,
    "memory": steady.growth,
}


def main() -> None:
    """Measure all parts and save the figures, or only the parts named; exit with 1 if a bar is missed."""
    quiet()
    if not shutil.which("h2load"):
        sys.exit("h2load is missing: install Debian's package nghttp2-client.")
    chosen = sys.argv[1:] or list(PARTS)
    figures: list[Figure] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            figures += PARTS[name](Path(folder))
    if chosen == list(PARTS):
        report("full", f"{checks.TITLE}, and other figures", figures)
    print(table(figures))
    sys.exit(any(not each.reached for each in figures))


if __name__ == "__main__":
    main()
