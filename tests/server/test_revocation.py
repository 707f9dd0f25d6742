"""No call that begins after a change was answered succeeds with what the change took away."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import grpc
import pytest
from conftest import Site, add_member
from sqlalchemy import delete, update
from test_tokens import DENIED, UNAUTHENTICATED, Desk, id_of, put_credential

from rolecall import remembered
from rolecall.remembered import Remembered
from rolecall.storage import Transaction, tables
from rolecall.storage.organizations import record_change
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb

ROUNDS = 100 if os.environ.get("CI") == "true" else 30
CALLERS = 2
AFTERWARDS = 5
# Takes `authorization check`, which no VIEWER has.
QUESTION = authorization.CheckRequest(subject="role:OWNER", action="view", resource="secrets")

Change = Callable[[Site, Desk, str, str], None]


def lower_role(site: Site, desk: Desk, user: str, token: str) -> None:
    """The holder becomes a VIEWER."""

    def work(tx: Transaction) -> None:
        tx.connection.execute(update(tables.members).where(tables.members.c.user_id == user).values(role="VIEWER"))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def remove_member(site: Site, desk: Desk, user: str, token: str) -> None:
    """The holder is no member any more."""

    def work(tx: Transaction) -> None:
        tx.connection.execute(delete(tables.members).where(tables.members.c.user_id == user))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def delete_token(site: Site, desk: Desk, user: str, token: str) -> None:
    """An owner deletes the token."""
    desk.send("OWNER", pb.DeleteTokenRequest(id=id_of(token)))


def rotate_token(site: Site, desk: Desk, user: str, token: str) -> None:
    """The token gets another secret."""
    desk.send(token, pb.RotateTokenRequest(id=id_of(token)))


def sign_out(site: Site, desk: Desk, user: str, token: str) -> None:
    """The holder signs out."""
    desk.send(token, session.SignOutRequest())


@dataclass
class Observed:
    """When each call began, and how it ended; None for an answer."""

    calls: list[tuple[float, grpc.StatusCode | None]] = field(default_factory=list)

    def call(self, desk: Desk, token: str) -> None:
        """Ask once more."""
        began = time.monotonic()
        try:
            desk.send(token, QUESTION)
            code = None
        except grpc.RpcError as error:
            code = error.code()
        self.calls.append((began, code))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lower_role, DENIED),
        (remove_member, UNAUTHENTICATED),
        (delete_token, UNAUTHENTICATED),
        (rotate_token, UNAUTHENTICATED),
        (sign_out, UNAUTHENTICATED),
    ],
)
def test_no_call_after_the_answer_succeeds(site: Site, change: Change, refusal: grpc.StatusCode) -> None:
    """Callers that ask all the time, while the change is made: whoever begins after its answer is refused."""
    desks = [Desk(site) for _ in range(CALLERS)]
    desk = Desk(site)
    late = []
    answered_before = 0
    for number in range(ROUNDS):
        user = add_member(site.storage, "acme", f"p{number}@acme.io", "CONTRIBUTOR").user_id
        token = put_credential(site, user)
        start, done = Barrier(CALLERS + 1), threading.Event()
        observed = Observed()

        def ask(mine: Desk, token: str, start: Barrier, done: threading.Event, observed: Observed) -> None:
            start.wait()
            # The pause leaves the server, which is in this process, room to work.
            while not done.wait(0.001):
                observed.call(mine, token)
            for _ in range(AFTERWARDS):
                observed.call(mine, token)

        threads = [threading.Thread(target=ask, args=(mine, token, start, done, observed)) for mine in desks]
        for thread in threads:
            thread.start()
        start.wait()
        # From before the first caller is remembered to after that, in turn.
        time.sleep(number % 6 * 0.002)
        change(site, desk, user, token)
        answered = time.monotonic()
        done.set()
        for thread in threads:
            thread.join()
        late += [code for began, code in observed.calls if began > answered]
        answered_before += sum(code is None for _, code in observed.calls)

    assert len(late) >= ROUNDS * CALLERS * AFTERWARDS
    assert set(late) == {refusal}
    assert answered_before > ROUNDS


# What is remembered


def interleavings(*parts: tuple[str, ...]) -> Iterator[list[str]]:
    """Every order in which the steps of these can follow each other."""
    total = sum(map(len, parts))
    marks = [number for number, part in enumerate(parts) for _ in part]
    for order in set(itertools.permutations(marks, total)):
        rest = [iter(part) for part in parts]
        yield [next(rest[number]) for number in order]


def run(steps: list[str], *, key_names: tuple[str, ...] = ("token", "user"), changed: str = "user") -> Any:
    """What is remembered after these steps of fills (`t`icket, `r`ead, `p`ut) and of a change (`w`rite, `f`orget)."""
    cache: Remembered[str, str] = Remembered(10, 60.0)
    row = "old"
    tickets: dict[str, int] = {}
    read: dict[str, str] = {}
    for step in steps:
        kind, who = step[0], step[1:]
        match kind:
            case "t":
                tickets[who] = cache.ticket()
            case "r":
                read[who] = row
            case "p":
                cache.put("key", read[who], key_names, tickets[who])
            case "w":
                row = "new"
            case "f":
                cache.forget([changed])
    return cache.get("key")


def test_what_was_read_before_a_change_is_never_kept() -> None:
    """Two fills and a change, step by step in every order: the old value is never there afterwards."""
    orders = list(interleavings(("t1", "r1", "p1"), ("t2", "r2", "p2"), ("w", "f")))
    found = [run(steps) for steps in orders]

    assert len(orders) == 560
    assert set(found) == {None, "new"}


def test_a_fill_after_a_change_is_kept() -> None:
    """As is one that depends on nothing that was changed."""
    assert run(["w", "f", "t1", "r1", "p1"]) == "new"
    for steps in interleavings(("t1", "r1", "p1"), ("f",)):
        assert run(steps, changed="another") == "old"


def test_a_change_forgets_just_what_depends_on_it() -> None:
    """Whether named first or last, and whatever was kept before under the same key."""
    cache: Remembered[str, int] = Remembered(10, 60.0)
    cache.put("a", 1, ("x", "y"), cache.ticket())
    cache.put("b", 2, ("y", "z"), cache.ticket())
    cache.put("c", 3, ("z",), cache.ticket())
    cache.put("c", 4, ("w",), cache.ticket())
    cache.forget(["y"])
    after_y = [cache.get(key) for key in "abc"]
    cache.forget(["z"])
    after_z = cache.get("c")
    cache.forget(["w", "unknown"])

    assert after_y == [None, None, 4]
    assert after_z == 4
    assert cache.get("c") is None
    assert cache._keys == {}


def test_more_changes_than_are_told_apart_spoil_older_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fill that began before the oldest change that is known is thrown away; a later one is kept."""
    monkeypatch.setattr(remembered, "MAX_CHANGES", 3)
    for number in range(12):
        cache: Remembered[str, str] = Remembered(10, 60.0)
        ticket = cache.ticket()
        cache.forget(["mine"])
        for other in range(number):
            cache.forget([f"other{other}"])
        cache.put("key", "old", ("mine",), ticket)

        assert cache.get("key") is None, number
        cache.put("key", "new", ("mine",), cache.ticket())
        assert cache.get("key") == "new"
        assert len(cache._changed) <= 3


def test_what_is_remembered_is_bounded_and_short_lived() -> None:
    """The oldest goes first, and each after its time."""
    cache: Remembered[int, int] = Remembered(3, 0.2)
    for number in range(5):
        cache.put(number, number, (str(number),), cache.ticket())
    kept = [cache.get(number) for number in range(5)]
    time.sleep(0.25)

    assert kept == [None, None, 2, 3, 4]
    assert [cache.get(number) for number in range(5)] == [None] * 5
    assert len(cache._keys) == 3
