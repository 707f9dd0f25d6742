"""Tokens that are asked about, and how often somebody may guess at them, or at credentials."""

import csv
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import MakeSite, Site
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import event
from test_tokens import (
    CHECK_ONLY,
    OK,
    UNAUTHENTICATED,
    Desk,
    found_other,
    id_of,
    put_credential,
    until,
)

from rolecall import callers, credentials, directory
from rolecall.directory import Directory
from rolecall.domain import CredentialKind
from rolecall.errors import RateLimited
from rolecall.storage import Storage
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
GRANTED, SCOPE, INVALID = pb.REASON_GRANTED, pb.REASON_TOKEN_SCOPE, pb.REASON_TOKEN_INVALID
NOT_GRANTED = pb.REASON_NOT_GRANTED

with (Path(__file__).parents[1] / "permissions.csv").open(encoding="utf-8") as _file:
    CELLS = [(row["resource"], row["action"]) for row in csv.DictReader(_file)]


def forged(number: int = 1) -> list[str]:
    """Well-formed credentials that nobody was ever given."""
    return [credentials.mint(CredentialKind.PERSONAL).text for _ in range(number)]


def with_another_secret(text: str) -> str:
    """The id of a live token with a secret of somebody's invention."""
    return credentials.mint(CredentialKind(text[:3]), id_of(text)).text


def ask(token: str, action: str = "view", resource: str = "secrets") -> pb.CheckRequest:
    """May whoever presents this token do this?"""
    return pb.CheckRequest(subject_token=token, action=action, resource=resource)


def ask_all(*tokens: str) -> pb.BatchCheckRequest:
    """May each do `secrets view`?"""
    return pb.BatchCheckRequest(
        checks=[pb.BatchCheckItem(subject_token=token, action="view", resource="secrets") for token in tokens]
    )


def test_a_presented_token_is_answered_for(site: Site) -> None:
    """Live: as its holder's role; restricted: what it is cut down to; all others TOKEN_INVALID."""
    desk = Desk(site)
    user = site.members["CONTRIBUTOR"].user_id
    restricted = put_credential(site, user, only=CHECK_ONLY)
    rotated = put_credential(site, user)
    desk.send("CONTRIBUTOR", token_pb2.RotateTokenRequest(id=id_of(rotated)))
    overlapping = put_credential(site, user)
    overlap = Duration(seconds=3600)
    newest = desk.send("CONTRIBUTOR", token_pb2.RotateTokenRequest(id=id_of(overlapping), overlap=overlap)).secret
    deleted = put_credential(site, user)
    desk.send("CONTRIBUTOR", token_pb2.DeleteTokenRequest(id=id_of(deleted)))
    live = site.tokens["CONTRIBUTOR"]
    expected = {
        live: GRANTED,
        overlapping: GRANTED,
        newest: GRANTED,
        put_credential(site, user, kind=CredentialKind.SESSION): GRANTED,
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER"): GRANTED,
        put_credential(site, user, only=(("secrets", "*"),)): GRANTED,
        site.tokens["VIEWERNOSECRETS"]: NOT_GRANTED,
        restricted: SCOPE,
        "x": INVALID,
        "é": INVALID,
        live[:-1]: INVALID,
        live + " ": INVALID,
        f"Bearer {live}": INVALID,
        id_of(live): INVALID,
        forged()[0]: INVALID,
        with_another_secret(live): INVALID,
        put_credential(site, user, life=1): INVALID,
        deleted: INVALID,
        rotated: INVALID,
        found_other(site): INVALID,
    }
    answers = {text: desk.send("OWNER", ask(text)) for text in expected}
    batch = desk.send("OWNER", ask_all(*expected))

    assert [answer.reason for answer in answers.values()] == list(expected.values())
    assert [result.reason for result in batch.results] == list(expected.values())
    for answer in (*answers.values(), *batch.results):
        assert (answer.decision == pb.DECISION_ALLOW) is (answer.reason == GRANTED)
    assert {answer.role for answer in answers.values() if answer.reason == INVALID} == {""}
    assert answers[restricted].role == answers[live].role == "CONTRIBUTOR"
    assert desk.send("OWNER", ask(restricted, "check", "authorization")).reason == GRANTED


def test_explanations_of_tokens_tell_no_secret(site: Site) -> None:
    """They say what is the matter: restricted to less, or no such live token."""
    desk = Desk(site)
    restricted = put_credential(site, site.members["OWNER"].user_id, only=CHECK_ONLY)
    wrong = with_another_secret(site.tokens["OWNER"])
    explained = {}
    for text in (restricted, wrong):
        request = ask(text)
        request.explain = True
        explained[text] = desk.send("OWNER", request)

    assert "restricted to less" in explained[restricted].explanation.summary
    assert "no such live token" in explained[wrong].explanation.summary
    for text, answer in explained.items():
        assert text.split("_")[2] not in str(answer)


def test_only_who_may_check_asks_about_others_tokens(site: Site) -> None:
    """About its own a credential may ask, by its text or id; about others' just with `authorization check`."""
    desk = Desk(site)
    viewer = site.tokens["VIEWER"]
    second = put_credential(site, site.members["VIEWER"].user_id)

    assert desk.send(viewer, ask(viewer)).reason == GRANTED
    assert desk.send(viewer, pb.ListPermissionsRequest(subject=f"token:{id_of(viewer)}")).role == "VIEWER"
    for request in (
        ask(site.tokens["OWNER"]),
        ask(second),
        ask(forged()[0]),
        ask("x"),
        ask_all(viewer, site.tokens["OWNER"]),
        pb.ListPermissionsRequest(subject=f"token:{id_of(site.tokens['OWNER'])}"),
    ):
        assert desk.refused(viewer, request).reason == "PERMISSION_MISSING", request


def test_permissions_of_a_token_are_narrowed(site: Site) -> None:
    """ListPermissions of `token:ID`, Check of `token:ID` and Check of the text agree over the whole matrix."""
    desk = Desk(site)
    user = site.members["ADMIN"].user_id
    for only in (None, CHECK_ONLY, (("*", "view"),), (("secrets", "*"), ("members/x", "view"), ("*-tokens", "create"))):
        text = put_credential(site, user, only=only)
        by_id = f"token:{id_of(text)}"
        listed = desk.send("OWNER", pb.ListPermissionsRequest(subject=by_id, page_size=1000)).permissions
        items = [pb.BatchCheckItem(subject=by_id, resource=r, action=a) for r, a in CELLS]
        items += [pb.BatchCheckItem(subject_token=text, resource=r, action=a) for r, a in CELLS]
        results = desk.send("OWNER", pb.BatchCheckRequest(checks=items)).results
        granted = [result.decision == pb.DECISION_ALLOW for result in results]
        expected = [(r, a) in {(item.resource, item.action) for item in listed} for r, a in CELLS]

        assert granted == expected * 2, only
        assert any(expected)
        assert bool(only) is (SCOPE in {result.reason for result in results})


def test_guesses_are_limited_for_each_caller(site: Site) -> None:
    """Beyond so many, RATE_LIMITED; tokens that were good a moment ago are answered for still, and to others all."""
    desk = Desk(site)
    good, unseen = site.tokens["VIEWER"], site.tokens["CONTRIBUTOR"]
    assert desk.send("OWNER", ask(good)).reason == GRANTED
    for _ in range(2):
        # Some are forgiven each second, so that one batch is not enough for long.
        batch = desk.send("OWNER", ask_all(*forged(directory.GUESSES_AT_ONCE - 100)))

    assert {result.reason for result in batch.results} == {INVALID}
    for request in (ask(forged()[0]), ask(unseen), ask_all(good, forged()[0]), ask(with_another_secret(good))):
        said = desk.refused("OWNER", request)
        assert (said.code, said.reason) == (EXHAUSTED, "RATE_LIMITED")
    assert desk.send("OWNER", ask(good)).reason == GRANTED
    assert {result.reason for result in desk.send("OWNER", ask_all(good, good)).results} == {GRANTED}
    assert desk.send("OWNER", pb.CheckRequest(subject="role:OWNER", action="view", resource="secrets")).role == "OWNER"
    assert desk.send("ADMIN", ask(unseen)).reason == GRANTED
    assert desk.send("ADMIN", ask(forged()[0])).reason == INVALID


def test_guesses_are_heard_again_after_a_while(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many a second: whoever waits may ask again. A person's credentials share one limit."""
    monkeypatch.setattr(directory, "GUESSES_AT_ONCE", 20)
    monkeypatch.setattr(directory, "GUESSES_A_SECOND", 4.0)
    site = make_site(sqlite_url)
    desk = Desk(site)
    second = put_credential(site, site.members["OWNER"].user_id)
    desk.send("OWNER", ask_all(*forged(26)))

    assert desk.code("OWNER", ask(forged()[0])) is EXHAUSTED
    assert desk.code(second, ask(forged()[0])) is EXHAUSTED
    until(lambda: desk.code("OWNER", ask(forged()[0])) is OK, 5)


def test_forged_credentials_from_one_peer_are_limited(make_site: MakeSite, sqlite_url: str) -> None:
    """Beyond so many, RATE_LIMITED; who was just here goes on, and malformed ones stay UNAUTHENTICATED."""
    site = make_site(sqlite_url)
    desk = Desk(site)
    who = session.WhoAmIRequest()
    assert desk.code("OWNER", who) is OK
    codes = [desk.code(text, who) for text in forged(callers.FAILURES_AT_ONCE)]
    while desk.code(forged()[0], who) is UNAUTHENTICATED:
        # Some were forgiven meanwhile.
        codes += [UNAUTHENTICATED]

    assert set(codes) == {UNAUTHENTICATED}
    assert len(codes) < 2 * callers.FAILURES_AT_ONCE
    refusals = {desk.refused(text, who).reason for text in forged(3)} - {"UNAUTHENTICATED_CREDENTIAL"}
    assert refusals == {"RATE_LIMITED"}
    assert [desk.code("OWNER", who) for _ in range(20)] == [OK] * 20
    for malformed in ("x", site.tokens["OWNER"][:-1], site.tokens["OWNER"] + "0"):
        assert desk.code(malformed, who) is UNAUTHENTICATED


def test_one_forged_credential_costs_one_look_up(sqlite_site: Site) -> None:
    """Presented again at once it is known to be nobody's; a malformed one costs none."""
    looked_up: list[str] = []

    def note(*arguments: Any) -> None:
        if "FROM credentials" in arguments[2]:
            looked_up.append(arguments[2])

    event.listen(sqlite_site.server.storage._engine, "before_cursor_execute", note)
    desk, [text] = Desk(sqlite_site), forged()
    codes = [desk.code(one, session.WhoAmIRequest()) for one in (text, text, text, text[:-1], "x")]

    assert codes == [UNAUTHENTICATED] * 5
    assert len(looked_up) == 1


def watched_is_shut(watched: Directory, text: str) -> bool:
    """Whether the peer that forged so much is no longer heard."""
    try:
        watched.caller(text, lambda: "10.0.0.1")
    except RateLimited:
        return True
    return False


def test_peers_are_limited_apart(storage: Storage) -> None:
    """One that forges doesn't shut others out."""
    watched = Directory(storage)
    for text in forged(callers.FAILURES_AT_ONCE):
        watched.caller(text, lambda: "10.0.0.1")

    more = iter(forged(callers.FAILURES_AT_ONCE))
    while not watched_is_shut(watched, next(more)):
        # Some were forgiven meanwhile.
        pass

    assert watched.caller(forged()[0], lambda: "10.0.0.2") is None
    assert watched.caller("x", lambda: "10.0.0.1") is None


def test_look_ups_wait_in_a_bounded_queue(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many run, as many wait, all others are told to come again; those that wait too long as well."""
    monkeypatch.setattr(callers, "TURN_SECONDS", 2.0)
    storage = Storage(sqlite_url)
    storage.create()
    release, running, outcomes = threading.Event(), threading.Semaphore(0), list[str]()

    def slow(work: Callable[[Any], Any]) -> Any:
        running.release()
        assert release.wait(20)
        return None, 0

    watched = Directory(storage, look_ups=2)
    monkeypatch.setattr(storage, "read", slow)

    def present(text: str) -> None:
        try:
            watched.caller(text, lambda: "10.0.0.1")
            outcomes.append("nobody")
        except RateLimited:
            outcomes.append("limited")

    first = [threading.Thread(target=present, args=(text,)) for text in forged(2)]
    for thread in first:
        thread.start()
        assert running.acquire(timeout=10)
    places = watched._callers._queue._initial_value  # type: ignore[attr-defined]
    waiting = [threading.Thread(target=present, args=(text,)) for text in forged(places - 2)]
    for thread in waiting:
        thread.start()
    until(lambda: watched._callers._queue._value == 0)
    present(forged()[0])
    at_once = list(outcomes)
    for thread in waiting:
        thread.join(10)
    too_long = list(outcomes)
    release.set()
    for thread in first:
        thread.join(10)
    present(forged()[0])
    storage.close()

    assert at_once == ["limited"]
    assert 4 <= places <= 8
    assert too_long == ["limited"] * (places - 1)
    assert outcomes == [*too_long, *["nobody"] * 3]
