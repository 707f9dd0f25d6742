"""Notices of tokens' expiry: to whom, when, once each whatever servers run, and off by a setting."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import select

from rolecall.domain import CredentialKind, now
from rolecall.errors import WriteConflict
from rolecall.limits import Limits, Rate
from rolecall.services.expiry_notices import BATCH, MAX_VIEWERS, ExpiryNotices
from rolecall.storage import Transaction, tables
from support.credentials import DAY, SECOND, id_of, put_credential
from support.mail_servers import MailServer, body_of
from support.mail_sites import QUICK_MAIL, another_server, owner, sql
from support.sites import MakeSite, Site, add_member
from support.waiting import wait_until

VIEWERS = ["admin@acme.io", "ann@acme.io"]
AT_ONCE = replace(QUICK_MAIL, expiry_notice_seconds=0.0, expiry_notices=Rate(1.0, 1000))


@pytest.fixture
def limits() -> Limits:
    """Notices are looked for soon."""
    return replace(QUICK_MAIL, expiry_notice_seconds=0.1)


def without_sender(site: Site) -> Site:
    """Stop the sender of the site, so that what is queued stays queued."""
    site.core.sender.stop()
    return site


def notices(site: Site) -> list[tuple[str, str, int]]:
    """The queued notices: token, person and number."""
    columns = tables.mails.c
    query = select(columns.about, columns.generation).where(columns.kind == "token_expiry")

    def work(tx: Transaction) -> list[tuple[str, str, int]]:
        rows = tx.connection.execute(query.order_by(columns.about, columns.generation))
        return [(*row.about.split(" "), row.generation) for row in rows]

    return site.storage.read(work)


def queue(site: Site, limits: Limits = AT_ONCE) -> None:
    """Queue the notices that are due, as another process."""
    ExpiryNotices(site.storage, site.server.live, limits).run()


def age(site: Site, token: str, left: int, life: int = 90 * DAY) -> None:
    """Have a token expire after `left` microseconds, and live for `life` in all."""
    expires = now() + left
    sql(
        site,
        "UPDATE credentials SET expire_time = :expires, create_time = :created WHERE id = :id",
        expires=expires,
        created=expires - life,
        id=id_of(token),
    )


def test_notices_go_to_the_holder_and_to_those_who_may_view_the_token(make_site: MakeSite, database_url: str) -> None:
    """14 and 3 days before, each person gets one mail about each token; no other member does, and nothing repeats."""
    with MailServer() as server:
        site = make_site(database_url, **server.settings())
        viewer = site.members["VIEWER"]
        personal = put_credential(site, viewer.user_id, name="laptop")
        program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", name="https://evil.io")
        session = put_credential(site, viewer.user_id, kind=CredentialKind.SESSION)
        for token in (personal, program, session):
            age(site, token, 14 * DAY - SECOND)
        wait_until(lambda: len(server.accepted) >= 5)
        first = Counter(server.recipients)
        for token in (personal, program, session):
            age(site, token, 3 * DAY - SECOND)
        wait_until(lambda: len(server.accepted) >= 10)
        queue(site)
        wait_until(lambda: not notices(site))
        accepted = server.accepted

    assert first == Counter([viewer.email, *VIEWERS, *VIEWERS])
    assert Counter(server.recipients) == first + first
    assert len({received.id for received in accepted}) == 10
    texts = [" ".join(body_of(received.mail).split()) for received in accepted]
    assert sum(f"laptop ({id_of(personal)}) of {viewer.email} in acme" in text for text in texts) == 6
    assert sum(f"the token {id_of(program)} of acme in acme" in text for text in texts) == 4
    assert not any("evil" in text or id_of(session) in text for text in texts)
    assert not any(secret.rpartition("_")[2] in text for text in texts for secret in (personal, program))


@pytest.mark.parametrize(
    ("left", "life", "numbers"),
    [
        (14 * DAY + SECOND, 90 * DAY, []),
        (14 * DAY - SECOND, 90 * DAY, [1]),
        (14 * DAY - SECOND, 14 * DAY, []),
        (3 * DAY + SECOND, 90 * DAY, [1]),
        (3 * DAY - SECOND, 90 * DAY, [2]),
        (3 * DAY - SECOND, 14 * DAY, [2]),
        (2 * DAY, 3 * DAY, []),
        (-SECOND, 90 * DAY, []),
    ],
)
def test_each_notice_has_its_time(
    make_site: MakeSite, database_url: str, left: int, life: int, numbers: list[int]
) -> None:
    """A token that lives no longer than a notice's time has none; of two that are due, the later is queued."""
    site = without_sender(make_site(database_url, expiry_mails=False))
    user = site.members["VIEWER"].user_id
    token = put_credential(site, user)
    age(site, token, left, life)
    for _ in range(2):
        queue(site)

    assert [number for _, person, number in notices(site) if person == user] == numbers


def test_deleted_token_has_no_notice(make_site: MakeSite, database_url: str) -> None:
    """A deleted token has no notice; one that is queued is dropped when the token is deleted before it is sent."""
    site = without_sender(make_site(database_url, expiry_mails=False))
    user = site.members["VIEWER"].user_id
    deleted, late = put_credential(site, user), put_credential(site, user)
    sql(site, "UPDATE credentials SET revoke_time = 1 WHERE id = :id", id=id_of(deleted))
    for token in (deleted, late):
        age(site, token, 2 * DAY)
    with MailServer() as server:
        server.gate = lambda: False
        queue(site)
        about = {token for token, _, _ in notices(site)}
        sql(site, "UPDATE credentials SET revoke_time = 1 WHERE id = :id", id=id_of(late))
        with another_server(site, **server.settings()):
            wait_until(lambda: not notices(site))

    assert about == {id_of(late)}
    assert server.all_received == []


def test_processes_queue_each_notice_once(make_site: MakeSite, database_url: str) -> None:
    """Several servers that look at the same time queue every notice once, however many are due."""
    site = without_sender(make_site(database_url, expiry_mails=False))
    user = site.members["VIEWER"].user_id
    tokens = [put_credential(site, user) for _ in range(BATCH + 20)]
    for token in tokens:
        age(site, token, 2 * DAY)
    start = Barrier(4)

    def work() -> None:
        mine = ExpiryNotices(site.storage, site.server.live, AT_ONCE)
        start.wait()
        for _ in range(4):
            with suppress(WriteConflict):
                mine.run()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result()
    queue(site)
    queue(site)

    assert Counter(token for token, _, _ in notices(site)) == {id_of(token): 3 for token in tokens}


def test_recipients_are_chosen_by_permission_and_bounded(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """Members who may `member-tokens view` get the notice, by any role, and at most a hundred besides the holder."""
    policy = policy_folder / "policy.csv"
    policy.write_text(policy.read_text() + "p, VIEWERNOSECRETS, member-tokens, view, allow\n")
    tests = policy_folder / "policy_test.csv"
    tests.write_text(tests.read_text().replace(",member-tokens,view,deny", ",member-tokens,view,allow"))
    site = without_sender(make_site(sqlite_url, folder=policy_folder, expiry_mails=False))
    token = put_credential(site, site.members["VIEWER"].user_id)
    age(site, token, 2 * DAY)
    for number in range(MAX_VIEWERS):
        add_member(site.storage, "acme", f"a{number}@acme.io", "VIEWERNOSECRETS")
    queue(site)
    people = {person for _, person, _ in notices(site)}

    assert len(people) == MAX_VIEWERS + 1
    assert site.members["VIEWER"].user_id in people


def test_many_tokens_flood_nobody_else(make_site: MakeSite, sqlite_url: str) -> None:
    """Above the limit only the holder has notices; the tokens of others, and the organization's, have limits of theirs.

    Otherwise a member who may create tokens could fill the mailboxes of all who may see them.
    """
    site = without_sender(make_site(sqlite_url, expiry_mails=False))
    user, other = (site.members[role].user_id for role in ("CONTRIBUTOR", "VIEWER"))
    many = [put_credential(site, user) for _ in range(10)]
    own = put_credential(site, other)
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    for token in (*many, own, program):
        age(site, token, 2 * DAY)
    queue(site, replace(AT_ONCE, expiry_notices=Rate(1e-6, 3)))
    people = Counter(person for _, person, _ in notices(site))

    assert people == {user: 10, other: 1, **{site.members[role].user_id: 3 + 1 + 1 for role in ("ADMIN", "OWNER")}}


def test_member_who_may_no_longer_see_the_token_gets_no_notice(make_site: MakeSite, database_url: str) -> None:
    """A role that was lowered while the mail was queued counts, but not that of the holder."""
    site = without_sender(make_site(database_url, expiry_mails=False))
    holder, former = site.members["CONTRIBUTOR"], site.members["ADMIN"]
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    for token in (put_credential(site, holder.user_id), program):
        age(site, token, 2 * DAY)
    with MailServer() as server:
        queue(site)
        owner(site).members.change_role(former.user_id, "VIEWER")
        owner(site).members.change_role(holder.user_id, "VIEWER")
        with another_server(site, **server.settings()):
            wait_until(lambda: not notices(site))

    assert Counter(server.recipients) == {"ann@acme.io": 2, holder.email: 1}
    # The command in the mail makes a token of the same kind.
    lines = [line for received in server.accepted for line in body_of(received.mail).splitlines()]
    assert sum(line.endswith("rolecall tokens create NAME --role VIEWER") for line in lines) == 1
    assert sum(line.endswith("rolecall tokens create NAME") for line in lines) == 2


def test_notices_are_switched_off_by_a_setting(make_site: MakeSite, sqlite_url: str) -> None:
    """Without `expiry_mails` no notice is queued, and the counters stay for a server that sends them."""
    site = make_site(sqlite_url, expiry_mails=False)
    token = put_credential(site, site.members["VIEWER"].user_id)
    age(site, token, 2 * DAY)
    time.sleep(0.6)

    assert notices(site) == []
    assert sql(site, "SELECT expiry_notices FROM credentials WHERE id = :id", id=id_of(token)) == [(0,)]
