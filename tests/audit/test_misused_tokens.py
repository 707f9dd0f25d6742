"""Uses of tokens that don't work, which their organization's audit log records: once an hour for each token."""

from dataclasses import replace

import pytest

from rolecall import Client
from rolecall.client import to_dict
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.errors import UnauthenticatedCredential
from rolecall.v1 import audit_pb2
from support.audit_logs import INTACT, entries, revision, verify
from support.credentials import found_other, id_of, put_credential, put_session
from support.mail_sites import another_server
from support.sites import QUICK_LIMITS, MakeSite, Site
from support.waiting import wait_until

DENIED = audit_pb2.AuditFilter(outcome=audit_pb2.AUDIT_OUTCOME_DENIED)


def use(site: Site, secret: str, times: int = 1) -> None:
    """Present a secret, which is refused."""
    with Client(site.address, secret, timeout=20) as client:
        for _ in range(times):
            with pytest.raises(UnauthenticatedCredential):
                client.session.who_am_i()


def recorded(site: Site) -> list[tuple[str, str, str, int]]:
    """The action, actor, object and count of each recorded use."""
    found = entries(site, DENIED)
    assert all(entry.reason == "UNAUTHENTICATED_CREDENTIAL" for entry in found)
    assert all(entry.object == f"token:{entry.credential_id}" for entry in found)
    return [(entry.action, entry.actor, entry.object, int(to_dict(entry)["details"]["count"])) for entry in found]


def test_use_of_a_deleted_token_is_recorded(site: Site) -> None:
    """The audit log has the token and its holder, for tokens and sessions; the revision and the chain stay."""
    user, program = site.members["VIEWER"].user_id, "token:{}"
    personal = put_credential(site, user)
    organizational = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    signed_out = put_session(site, "VIEWER")
    with Client(site.address, site.tokens["OWNER"], timeout=20) as owner:
        owner.tokens.delete(id_of(personal))
        owner.tokens.delete(id_of(organizational))
    with Client(site.address, signed_out, timeout=20) as client:
        client.session.sign_out()
    at = revision(site)
    for secret in (personal, organizational, signed_out):
        use(site, secret)
    wait_until(lambda: len(entries(site, DENIED)) == 3)

    assert sorted(recorded(site)) == sorted(
        [
            ("PresentDeletedToken", f"user:{user}", f"token:{id_of(personal)}", 1),
            (
                "PresentDeletedToken",
                program.format(id_of(organizational)),
                f"token:{id_of(organizational)}",
                1,
            ),
            ("PresentDeletedToken", f"user:{user}", f"token:{id_of(signed_out)}", 1),
        ]
    )
    assert revision(site) == at
    assert verify(site) == INTACT


def test_use_from_outside_its_networks_is_recorded(site: Site) -> None:
    """A call from elsewhere is recorded, and a question that names an address elsewhere; one that names none isn't."""
    user = site.members["OWNER"].user_id
    with Client(site.address, site.tokens["OWNER"], timeout=20) as owner:
        called, asked, silent = (owner.tokens.create_personal(name, networks=["192.0.2.7"]) for name in "abc")
        use(site, called.secret)
        denied = owner.check_token(asked.secret, "view", "secrets", subject_address="192.0.2.8")
        unknown = owner.check_token(silent.secret, "view", "secrets")
    wait_until(lambda: len(entries(site, DENIED)) == 2)

    assert denied.reason.name == unknown.reason.name == "TOKEN_INVALID"
    assert sorted(recorded(site)) == sorted(
        ("PresentOutsideNetworks", f"user:{user}", f"token:{made.token.id}", 1) for made in (called, asked)
    )


def test_use_of_a_token_is_recorded_once_an_hour(make_site: MakeSite, database_url: str) -> None:
    """Further uses wait for the hour, in any process, also where it stops; then an entry has their number."""
    site = make_site(database_url, limits=replace(QUICK_LIMITS, misuse_seconds=4.0))
    with Client(site.address, site.tokens["OWNER"], timeout=20) as owner:
        made = owner.tokens.create_personal("x")
        owner.tokens.delete(made.token.id)
    use(site, made.secret)
    wait_until(lambda: len(entries(site, DENIED)) == 1)
    use(site, made.secret, 5)
    with another_server(site) as other:
        use(other, made.secret, 3)
    first = recorded(site)
    wait_until(lambda: len(entries(site, DENIED)) == 2)

    assert [count for *_, count in first] == [1]
    assert sum(count for *_, count in recorded(site)) >= 6
    assert verify(site) == INTACT


def test_unknown_secret_of_a_deleted_token_is_not_recorded(sqlite_site: Site) -> None:
    """A token's id alone, or its use in another organization, writes nothing into the log."""
    site = sqlite_site
    stranger = found_other(site)
    with Client(site.address, site.tokens["OWNER"], timeout=20) as owner:
        made = owner.tokens.create_personal("x")
        owner.tokens.delete(made.token.id)
        guess = token_format.mint(CredentialKind.PERSONAL, made.token.id).text
        owner.check_token(guess, "view", "secrets")
    use(site, guess)
    with Client(site.address, stranger, timeout=20) as other:
        other.check_token(made.secret, "view", "secrets")
    site.core.misuses.flush(closing=True)

    assert recorded(site) == []
