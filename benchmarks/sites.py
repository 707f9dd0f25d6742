"""Fixtures of the benchmarks: organizations with many members, and Checks of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from rolecall import policy
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key, token_format
from rolecall.domain import NEVER, now
from rolecall.services import organizations
from rolecall.storage import Storage, Transaction
from rolecall.storage.tables import members as member_table
from rolecall.storage.tables import role_assignments as assignment_table
from rolecall.storage.tables import team_members as team_member_table
from rolecall.storage.tables import teams as team_table
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["POLICIES", "Site", "assign", "check_requests", "create_site"]

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


def assign(site: Site, members: int, each: int, teams: int = 0) -> None:
    """Assign roles at `each` scopes to each of `members` members of the first organization, and one to each of `teams`.

    The roles are those of the shipped matrix but the owner's, in turn. All of these members are in all teams.
    """
    settings = json.loads((site.folder / "settings.json").read_text())
    roles = [name for name in policy.load(Path(settings["policy"]), 0.0).roles if name != "OWNER"]
    storage = Storage(Settings(**settings).database)
    storage.write(lambda tx: _assign(tx, members, each, teams, roles))
    storage.close()


def _assign(tx: Transaction, number: int, each: int, team_count: int, roles: list[str]) -> None:
    c = member_table.c
    found = select(c.email_key, c.user_id).where(c.organization == "org0", c.email_key.startswith("user"))
    ids = {row.email_key: row.user_id for row in tx.connection.execute(found)}
    people = [ids[f"user{place}@acme.io"] for place in range(number)]
    common = {"organization": "org0", "creator": "user:ann", "create_time": 1, "expire_time": NEVER, "note": ""}

    def row(scope: str, place: int, *, user_id: str | None = None, team_id: str | None = None) -> dict[str, Any]:
        principal = f"user:{user_id}" if user_id else f"team:{team_id}"
        own = {"id": token_format.new_id(), "principal": principal, "user_id": user_id, "team_id": team_id}
        return {**common, **own, "role": roles[place % len(roles)], "scope": scope, "changed": 1}

    for place in range(team_count):
        team_id = f"team{place}"
        tx.connection.execute(
            insert(team_table),
            {"organization": "org0", "id": team_id, "display_name": team_id, "create_time": 1, "changed": 1},
        )
        inside = [{"organization": "org0", "team_id": team_id, "user_id": user_id} for user_id in people]
        tx.connection.execute(insert(team_member_table), inside)
        tx.connection.execute(insert(assignment_table), [row(f"teams/{place}", place, team_id=team_id)])
    rows = (
        row(f"projects/{(place + scope) % number}/part{scope}", scope, user_id=user_id)
        for place, user_id in enumerate(people)
        for scope in range(each)
    )
    while some := [one for _, one in zip(range(AT_ONCE), rows, strict=False)]:
        tx.connection.execute(insert(assignment_table), some)


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
