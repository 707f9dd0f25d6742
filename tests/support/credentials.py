"""Credentials that are added directly to the database, and values of requests about them."""

from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.audit import AuditLog
from rolecall.credentials import server_key, token_format
from rolecall.domain import CredentialKind, Effect, Permission, Restriction, now
from rolecall.services import organizations
from rolecall.storage import credentials as credential_rows
from rolecall.storage.credentials import NewCredential
from rolecall.v1 import shared_pb2 as shared
from support.sites import Site

SECOND = 1_000_000
DAY = 24 * 60 * 60 * SECOND
CHECK_ONLY = (("authorization", "check"),)


def restriction(*pairs: tuple[str, str], scope: str = "") -> shared.Restriction:
    """A restriction to these (resource, action) patterns, and to a scope."""
    return shared.Restriction(permissions=[shared.Permission(resource=r, action=a) for r, a in pairs], scope=scope)


def put_credential(
    site: Site,
    user_id: str | None,
    *,
    kind: CredentialKind = CredentialKind.PERSONAL,
    role: str | None = None,
    only: tuple[tuple[str, str], ...] | None = None,
    scope: str = "",
    life: int = 12 * DAY,
    name: str = "put",
) -> str:
    """Add a credential directly to the database; return its text. `only`, `scope`: its restriction."""
    minted = token_format.mint(kind)
    bound = _restriction(only, scope)
    at = now()
    new = NewCredential(minted, "acme", user_id, role, name, bound, user_id or "operator", at, at + life)
    site.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    return minted.text


def _restriction(only: tuple[tuple[str, str], ...] | None, scope: str) -> Restriction | None:
    """The restriction to these patterns, if any, and this scope; None for neither."""
    if only is None:
        return Restriction(None, scope) if scope else None
    return Restriction(tuple(Permission(r, a, Effect.ALLOW) for r, a in only), scope)


def put_session(site: Site, role: str) -> str:
    """Add a session of the demo member with this role; return its text."""
    return put_credential(site, site.members[role].user_id, kind=CredentialKind.SESSION, life=DAY // 2)


def found_other(site: Site) -> str:
    """Create a second organization; return its owner's token."""
    policy, log = site.server.live.in_force.policy, AuditLog(server_key.read(site.settings.key_file))
    return organizations.create(site.storage, log, policy, "other", "ann@acme.io").token.text


def id_of(text: str) -> str:
    """The id within a credential's text."""
    return text.split("_")[1]


def in_future(microseconds: int) -> Timestamp:
    """The time this many microseconds from now."""
    seconds, rest = divmod(now() + microseconds, SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1000)
