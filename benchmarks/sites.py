"""What is asked of the servers that are measured: organizations with many members, and questions about them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from rolecall import credentials, keys, organizations, policy
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.domain import now
from rolecall.storage import Storage, Transaction
from rolecall.storage.tables import members as member_table
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["POLICIES", "Site", "found", "questions"]

POLICIES = Path(__file__).parents[1] / "policies"
AT_ONCE = 50_000


@dataclass(frozen=True)
class Site:
    """A folder with a database, a key and `settings.json`, and the token of the owner of each organization."""

    folder: Path
    tokens: list[str]

    @property
    def token(self) -> str:
        """The first one's."""
        return self.tokens[0]


def found(folder: Path, members: int, count: int = 1, policies: Path = POLICIES, database: str = "") -> Site:
    """Found so many organizations, `org0` and so on, with so many members each, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "database": database or f"sqlite:///{folder}/rolecall.db",
        "policy": str(policies),
        "key_file": str(folder / "key"),
        "listen": "127.0.0.1:0",
        "mail_folder": str(folder / "mail"),
    }
    (folder / "settings.json").write_text(json.dumps(told))
    loaded = policy.load(policies, 0.0)
    storage = Storage(Settings(**told).database)  # type: ignore[arg-type]
    storage.create()
    log = AuditLog(keys.create(folder / "key"))
    names = [f"org{number}" for number in range(count)]
    tokens = [organizations.found(storage, log, loaded, name, "ann@acme.io").token.text for name in names]
    # Behind the others, as each founding looks at all members that there are.
    storage.write(lambda tx: _add(tx, names, members, loaded.roles))
    storage.close()
    return Site(folder, tokens)


def questions(number: int, first: int = 0) -> list[bytes]:
    """Questions about so many members, from the first on, and all things of the shipped matrix in turns."""
    words = _words()
    asked = []
    for place in range(first, first + number):
        action, resource = words[place * 7 % len(words)]
        message = pb.CheckRequest(subject=f"user{place}@acme.io", action=action, resource=resource)
        asked.append(message.SerializeToString())
    return asked


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
            "user_id": credentials.new_id(),
            "email_key": email,
            "email": email,
            "display_name": "",
            "role": roles[place % len(roles)],
            "create_time": at,
            "update_time": at,
        }
