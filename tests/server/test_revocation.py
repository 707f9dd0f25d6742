"""No call that begins after a change was answered succeeds with what the change took away."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Barrier

import grpc
import pytest
from conftest import Site, add_member
from sqlalchemy import delete, update
from test_tokens import DENIED, UNAUTHENTICATED, Desk, id_of, put_credential

from rolecall.storage import Transaction, tables
from rolecall.storage.changes import record_change
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb

ROUNDS = 100 if os.environ.get("CI") == "true" else 12
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
