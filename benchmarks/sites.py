"""Fixtures of the benchmarks: organizations with many members, and Checks of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from rolecall import policy
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key, token_format
from rolecall.domain import now
from rolecall.services import organizations
from rolecall.storage import Storage, Transaction
from rolecall.storage.tables import members as member_table
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["POLICIES", "Site", "check_requests", "create_site"]

POLICIES = Path(__file__).parents[1] / "policies"
AT_ONCE = 50_000


@dataclass(frozen=True)
class Site:
    """Folder with a database, a key and `settings.json`, and the token of each organization's owner."""

    folder: Path
    tokens: list[str]

    @property
    def token(self) -> str:
        """The token of the first organization's owner."""
        return self.tokens[0]


def create_site(folder: Path, members: int, count: int = 1, policies: Path = POLICIES, database: str = "") -> Site:
    """Create `count` organizations (`org0`, `org1`, …) with `members` members each, in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "database": database or f"sqlite:///{folder}/rolecall.db",
        "policy": str(policies),
        "key_file": str(folder / "key"),
        "listen": "127.0.0.1:0",
        "mail_folder": str(folder / "mail"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    loaded = policy.load(policies, 0.0)
    storage = Storage(Settings(**settings).database)  # type: ignore[arg-type]
    storage.create()
    log = AuditLog(server_key.create(folder / "key"))
    names = [f"org{number}" for number in range(count)]
    tokens = [organizations.create(storage, log, loaded, name, "ann@acme.io").token.text for name in names]
    # After all organizations exist, because creating one reads all members.
    storage.write(lambda tx: _add(tx, names, members, loaded.roles))
    storage.close()
    return Site(folder, tokens)


def check_requests(number: int, first: int = 0) -> list[bytes]:
    """Make a Check of each of `number` members from `first` on, with the permissions of the shipped matrix in turn."""
    words = _words()
    messages = []
    for place in range(first, first + number):
        action, resource = words[place * 7 % len(words)]
        message = pb.CheckRequest(subject=f"user{place}@acme.io", action=action, resource=resource)
        messages.append(message.SerializeToString())
    return messages


@lru_cache
def _words() -> list[tuple[str, str]]:
    return [(rule.action, rule.resource) for rule in policy.load(POLICIES, 0.0).rules]


def _add(tx: Transaction, names: list[str], number: int, roles: tuple[str, ...]) -> None:
    at = now()
    rows = chain.from_iterable(_rows(organization, number, roles, at) for organization in names)
    while some := [row for _, row in zip(range(AT_ONCE), rows, strict=False)]:
        tx.connection.execute(insert(member_table), some)


def _rows(organization: str, number: int, roles: tuple[str, ...], at: int) -> Iterator[dict[str, Any]]:
    for place in range(number):
        email = f"user{place}@acme.io"
        yield {
            "organization": organization,
            "user_id": token_format.new_id(),
            "email_key": email,
            "email": email,
            "display_name": "",
            "role": roles[place % len(roles)],
            "create_time": at,
            "update_time": at,
        }
