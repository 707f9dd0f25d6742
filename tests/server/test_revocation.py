"""No call that begins after a change was answered succeeds with what the change took away."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from sqlalchemy import delete, update

from rolecall.storage import Transaction, tables
from rolecall.storage.changes import record_change
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import id_of, put_credential
from support.server_calls import DENIED, UNAUTHENTICATED, SiteCalls, method_for
from support.sites import MakeSite, Site, add_member

ROUNDS = 100 if os.environ.get("CI") == "true" else 12
CALLERS = 2
AFTERWARDS = 5
# Takes `authorization check`, which no VIEWER has.
QUESTION = authorization.CheckRequest(subject="role:OWNER", action="view", resource="secrets")

Change = Callable[[Site, SiteCalls, str, str], None]


def lower_role(site: Site, calls: SiteCalls, user: str, token: str) -> None:
    """Give the holder the role VIEWER."""

    def work(tx: Transaction) -> None:
        tx.connection.execute(update(tables.members).where(tables.members.c.user_id == user).values(role="VIEWER"))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def remove_member(site: Site, calls: SiteCalls, user: str, token: str) -> None:
    """Remove the holder."""

    def work(tx: Transaction) -> None:
        tx.connection.execute(delete(tables.members).where(tables.members.c.user_id == user))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def delete_token(site: Site, calls: SiteCalls, user: str, token: str) -> None:
    """Delete the token, as an owner."""
    calls.send("OWNER", pb.DeleteTokenRequest(id=id_of(token)))


def rotate_token(site: Site, calls: SiteCalls, user: str, token: str) -> None:
    """Rotate the token."""
    calls.send(token, pb.RotateTokenRequest(id=id_of(token)))


def sign_out(site: Site, calls: SiteCalls, user: str, token: str) -> None:
    """Sign the token out."""
    calls.send(token, session.SignOutRequest())


@dataclass
class ObservedCalls:
    """Start and status code of each call; None for an answer."""

    calls: list[tuple[float, grpc.StatusCode | None]] = field(default_factory=list)

    def call(self, calls: SiteCalls, token: str) -> None:
        """Make one call, and record it."""
        began = time.monotonic()
        try:
            calls.send(token, QUESTION)
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
def test_revocation_is_in_force_when_it_is_answered(site: Site, change: Change, refusal: grpc.StatusCode) -> None:
    """Calls run all the time during the change: each that begins after its answer is refused."""
    connections = [SiteCalls(site) for _ in range(CALLERS)]
    calls = SiteCalls(site)
    late = []
    answered_before = 0
    for number in range(ROUNDS):
        user = add_member(site.storage, "acme", f"p{number}@acme.io", "CONTRIBUTOR").user_id
        token = put_credential(site, user)
        start, done = Barrier(CALLERS + 1), threading.Event()
        observed = ObservedCalls()

        def ask(mine: SiteCalls, token: str, start: Barrier, done: threading.Event, observed: ObservedCalls) -> None:
            start.wait()
            # The pause leaves the server, which is in this process, room to work.
            while not done.wait(0.001):
                observed.call(mine, token)
            for _ in range(AFTERWARDS):
                observed.call(mine, token)

        threads = [threading.Thread(target=ask, args=(mine, token, start, done, observed)) for mine in connections]
        for thread in threads:
            thread.start()
        start.wait()
        # From before the first caller is cached to after that, in turn.
        time.sleep(number % 6 * 0.002)
        change(site, calls, user, token)
        answered = time.monotonic()
        done.set()
        for thread in threads:
            thread.join()
        late += [code for began, code in observed.calls if began > answered]
        answered_before += sum(code is None for _, code in observed.calls)

    assert len(late) >= ROUNDS * CALLERS * AFTERWARDS
    assert set(late) == {refusal}
    assert answered_before > ROUNDS


@pytest.mark.parametrize("question", [QUESTION, session.WhoAmIRequest()], ids=["Check", "WhoAmI"])
@pytest.mark.parametrize(
    ("change", "refusal"), [(lower_role, DENIED), (remove_member, UNAUTHENTICATED), (delete_token, UNAUTHENTICATED)]
)
@pytest.mark.usefixtures("each_transport")
def test_message_that_comes_after_the_change_is_refused(
    make_site: MakeSite, sqlite_url: str, change: Change, refusal: grpc.StatusCode, question: Message
) -> None:
    """A call that was begun before the change, and whose message comes after it, has no more rights than a new call."""
    site = make_site(sqlite_url)
    calls = SiteCalls(site)
    user = add_member(site.storage, "acme", "kim@acme.io", "CONTRIBUTOR").user_id
    token = put_credential(site, user)
    calls.send(token, QUESTION)
    method = method_for(type(question))
    changed = threading.Event()

    def messages() -> Iterator[bytes]:
        assert changed.wait(20)
        yield question.SerializeToString()

    path = f"/{method.containing_service.full_name}/{method.name}"
    stub = site.channel().stream_unary(path, request_serializer=bytes, response_deserializer=bytes)
    call = stub.future(messages(), timeout=20, metadata=(("authorization", f"Bearer {token}"),))
    # The call is authenticated meanwhile, and waits for its message.
    time.sleep(0.3)
    change(site, calls, user, token)
    changed.set()

    if change is lower_role and isinstance(question, session.WhoAmIRequest):
        assert session.WhoAmIResponse.FromString(call.result()).role == "VIEWER"
    else:
        assert call.code() is refusal


@pytest.mark.usefixtures("each_transport")
def test_change_during_the_query_of_a_credential_counts(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose credential was read before the change, in a query that returns after it, is refused."""
    site = make_site(sqlite_url)
    calls = SiteCalls(site)
    token = put_credential(site, add_member(site.storage, "acme", "kim@acme.io", "CONTRIBUTOR").user_id)
    load, read, changed = site.core.authenticator._load, threading.Event(), threading.Event()
    calls.send("OWNER", QUESTION)

    def load_slowly(presented: Any) -> Any:
        loaded = load(presented)
        read.set()
        assert changed.wait(20)
        return loaded

    monkeypatch.setattr(site.core.authenticator.loader, "_load_batch", load_slowly)
    path = "/rolecall.v1.AuthorizationService/Check"
    stub = site.channel().unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", f"Bearer {token}"),)
    call = stub.future(QUESTION.SerializeToString(), timeout=20, metadata=metadata)
    assert read.wait(10)
    time.sleep(0.05)
    delete_token(site, calls, "", token)
    changed.set()

    assert call.code() is UNAUTHENTICATED
