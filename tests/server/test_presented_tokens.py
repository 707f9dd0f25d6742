"""Presented tokens as subjects, and the rate limits on guessing them, or credentials."""

import csv
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import event

from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.errors import RateLimited, StorageUnavailable
from rolecall.identity.authentication import Authenticator
from rolecall.identity.batch_loader import Miss
from rolecall.limits import Limits, Rate
from rolecall.storage import Storage
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2
from support.credentials import CHECK_ONLY, found_other, id_of, put_credential
from support.engines import engine_of
from support.environment import PERMISSIONS_FILE
from support.server_calls import OK, UNAUTHENTICATED, SiteCalls
from support.sites import MakeSite, Site
from support.waiting import until

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
GRANTED, SCOPE, INVALID = pb.REASON_GRANTED, pb.REASON_TOKEN_SCOPE, pb.REASON_TOKEN_INVALID
NOT_GRANTED = pb.REASON_NOT_GRANTED

with PERMISSIONS_FILE.open(encoding="utf-8") as _file:
    CELLS = [(row["resource"], row["action"]) for row in csv.DictReader(_file)]


def forged(number: int = 1) -> list[str]:
    """Return well-formed credentials that were never issued."""
    return [token_format.mint(CredentialKind.PERSONAL).text for _ in range(number)]


def with_another_secret(text: str) -> str:
    """Return the id of a live token with another secret, well-formed."""
    return token_format.mint(CredentialKind(text[:3]), id_of(text)).text


def ask(token: str, action: str = "view", resource: str = "secrets") -> pb.CheckRequest:
    """Make a Check of this presented token."""
    return pb.CheckRequest(subject_token=token, action=action, resource=resource)


def ask_all(*tokens: str) -> pb.BatchCheckRequest:
    """Make a BatchCheck whether each token may `secrets view`."""
    return pb.BatchCheckRequest(
        checks=[pb.BatchCheckItem(subject_token=token, action="view", resource="secrets") for token in tokens]
    )


def test_check_of_a_presented_token(site: Site) -> None:
    """A live token has its holder's role; a restricted one its restriction; all others are TOKEN_INVALID."""
    calls = SiteCalls(site)
    user = site.members["CONTRIBUTOR"].user_id
    restricted = put_credential(site, user, only=CHECK_ONLY)
    rotated = put_credential(site, user)
    calls.send("CONTRIBUTOR", token_pb2.RotateTokenRequest(id=id_of(rotated)))
    overlapping = put_credential(site, user)
    overlap = Duration(seconds=3600)
    newest = calls.send("CONTRIBUTOR", token_pb2.RotateTokenRequest(id=id_of(overlapping), overlap=overlap)).secret
    deleted = put_credential(site, user)
    calls.send("CONTRIBUTOR", token_pb2.DeleteTokenRequest(id=id_of(deleted)))
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
    answers = {text: calls.send("OWNER", ask(text)) for text in expected}
    batch = calls.send("OWNER", ask_all(*expected))

    assert [answer.reason for answer in answers.values()] == list(expected.values())
    assert [result.reason for result in batch.results] == list(expected.values())
    for answer in (*answers.values(), *batch.results):
        assert (answer.decision == pb.DECISION_ALLOW) is (answer.reason == GRANTED)
    assert {answer.role for answer in answers.values() if answer.reason == INVALID} == {""}
    assert answers[restricted].role == answers[live].role == "CONTRIBUTOR"
    assert calls.send("OWNER", ask(restricted, "check", "authorization")).reason == GRANTED


def test_explanations_of_tokens_hold_no_secret(site: Site) -> None:
    """Explanations of tokens give the cause, a restriction or no such live token, without the secret."""
    calls = SiteCalls(site)
    restricted = put_credential(site, site.members["OWNER"].user_id, only=CHECK_ONLY)
    wrong = with_another_secret(site.tokens["OWNER"])
    explained = {}
    for text in (restricted, wrong):
        request = ask(text)
        request.explain = True
        explained[text] = calls.send("OWNER", request)

    assert "restricted to less" in explained[restricted].explanation.summary
    assert "no such live token" in explained[wrong].explanation.summary
    for text, answer in explained.items():
        assert text.split("_")[2] not in str(answer)


def test_check_of_anothers_token_needs_a_permission(site: Site) -> None:
    """A credential may ask about itself, by its text or id; about other tokens only with `authorization check`."""
    calls = SiteCalls(site)
    viewer = site.tokens["VIEWER"]
    second = put_credential(site, site.members["VIEWER"].user_id)

    assert calls.send(viewer, ask(viewer)).reason == GRANTED
    assert calls.send(viewer, pb.ListPermissionsRequest(subject=f"token:{id_of(viewer)}")).role == "VIEWER"
    for request in (
        ask(site.tokens["OWNER"]),
        ask(second),
        ask(forged()[0]),
        ask("x"),
        ask_all(viewer, site.tokens["OWNER"]),
        pb.ListPermissionsRequest(subject=f"token:{id_of(site.tokens['OWNER'])}"),
    ):
        assert calls.refused(viewer, request).reason == "PERMISSION_MISSING", request


def test_permissions_of_a_token_respect_its_restriction(site: Site) -> None:
    """ListPermissions of `token:ID`, Check of `token:ID` and Check of the text agree over the whole matrix."""
    calls = SiteCalls(site)
    user = site.members["ADMIN"].user_id
    for only in (None, CHECK_ONLY, (("*", "view"),), (("secrets", "*"), ("members/x", "view"), ("*-tokens", "create"))):
        text = put_credential(site, user, only=only)
        by_id = f"token:{id_of(text)}"
        listed = calls.send("OWNER", pb.ListPermissionsRequest(subject=by_id, page_size=1000)).permissions
        items = [pb.BatchCheckItem(subject=by_id, resource=r, action=a) for r, a in CELLS]
        items += [pb.BatchCheckItem(subject_token=text, resource=r, action=a) for r, a in CELLS]
        results = calls.send("OWNER", pb.BatchCheckRequest(checks=items)).results
        granted = [result.decision == pb.DECISION_ALLOW for result in results]
        expected = [(r, a) in {(item.resource, item.action) for item in listed} for r, a in CELLS]

        assert granted == expected * 2, only
        assert any(expected)
        assert bool(only) is (SCOPE in {result.reason for result in results})


def test_guesses_are_limited_for_each_caller(site: Site) -> None:
    """Guesses above the limit are RATE_LIMITED; cached tokens are still answered, and other callers get all answers."""
    calls = SiteCalls(site)
    good, unseen = site.tokens["VIEWER"], site.tokens["CONTRIBUTOR"]
    assert calls.send("OWNER", ask(good)).reason == GRANTED
    for _ in range(2):
        # Some are forgiven each second, so that one batch is not enough for long.
        batch = calls.send("OWNER", ask_all(*forged(Limits().guessed_tokens.burst - 100)))

    assert {result.reason for result in batch.results} == {INVALID}
    for request in (ask(forged()[0]), ask(unseen), ask_all(good, forged()[0]), ask(with_another_secret(good))):
        failure = calls.refused("OWNER", request)
        assert (failure.code, failure.reason) == (EXHAUSTED, "RATE_LIMITED")
    assert calls.send("OWNER", ask(good)).reason == GRANTED
    assert {result.reason for result in calls.send("OWNER", ask_all(good, good)).results} == {GRANTED}
    assert calls.send("OWNER", pb.CheckRequest(subject="role:OWNER", action="view", resource="secrets")).role == "OWNER"
    assert calls.send("ADMIN", ask(unseen)).reason == GRANTED
    assert calls.send("ADMIN", ask(forged()[0])).reason == INVALID


def test_limit_of_guesses_recovers(make_site: MakeSite, sqlite_url: str) -> None:
    """The rate limit on guesses refills each second. A person's credentials share one limit."""
    site = make_site(sqlite_url, limits=Limits(guessed_tokens=Rate(4.0, 20)))
    calls = SiteCalls(site)
    second = put_credential(site, site.members["OWNER"].user_id)
    calls.send("OWNER", ask_all(*forged(26)))

    assert calls.code("OWNER", ask(forged()[0])) is EXHAUSTED
    assert calls.code(second, ask(forged()[0])) is EXHAUSTED
    until(lambda: calls.code("OWNER", ask(forged()[0])) is OK, 5)


def test_forged_credentials_from_one_peer_are_limited(make_site: MakeSite, sqlite_url: str) -> None:
    """Forged credentials above the limit are RATE_LIMITED; known ones work, malformed ones are UNAUTHENTICATED."""
    site = make_site(sqlite_url)
    calls = SiteCalls(site)
    who = session.WhoAmIRequest()
    assert calls.code("OWNER", who) is OK
    codes = [calls.code(text, who) for text in forged(Limits().failed_credentials.burst)]
    while calls.code(forged()[0], who) is UNAUTHENTICATED:
        # Some were forgiven meanwhile.
        codes += [UNAUTHENTICATED]

    assert set(codes) == {UNAUTHENTICATED}
    assert len(codes) < 2 * Limits().failed_credentials.burst
    refusals = {calls.refused(text, who).reason for text in forged(3)} - {"UNAUTHENTICATED_CREDENTIAL"}
    assert refusals == {"RATE_LIMITED"}
    assert [calls.code("OWNER", who) for _ in range(20)] == [OK] * 20
    for malformed in ("x", site.tokens["OWNER"][:-1], site.tokens["OWNER"] + "0"):
        assert calls.code(malformed, who) is UNAUTHENTICATED


def test_one_forged_credential_costs_one_look_up(sqlite_site: Site) -> None:
    """A forged credential that is presented again costs no second query; a malformed one costs none."""
    looked_up: list[str] = []

    def note(*arguments: Any) -> None:
        if "FROM credentials" in arguments[2]:
            looked_up.append(arguments[2])

    event.listen(engine_of(sqlite_site.server.storage), "before_cursor_execute", note)
    calls, [text] = SiteCalls(sqlite_site), forged()
    codes = [calls.code(one, session.WhoAmIRequest()) for one in (text, text, text, text[:-1], "x")]

    assert codes == [UNAUTHENTICATED] * 5
    assert len(looked_up) == 1


def is_rate_limited(watched: Authenticator, text: str) -> bool:
    """Whether the peer is rate-limited after its forged credentials."""
    try:
        watched.authenticate(text, lambda: "10.0.0.1")
    except RateLimited:
        return True
    return False


def test_each_peer_has_its_own_limit(storage: Storage) -> None:
    """Forged credentials of one peer don't limit other peers."""
    watched = Authenticator(storage)
    for text in forged(Limits().failed_credentials.burst):
        watched.authenticate(text, lambda: "10.0.0.1")

    more = iter(forged(Limits().failed_credentials.burst))
    while not is_rate_limited(watched, next(more)):
        # Some were forgiven meanwhile.
        pass

    assert watched.authenticate(forged()[0], lambda: "10.0.0.2") is None
    assert watched.authenticate("x", lambda: "10.0.0.1") is None


def test_look_ups_wait_in_a_bounded_queue(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the queue's bound a guess is refused at once; a credential that was valid lately is not."""
    storage = Storage(sqlite_url)
    storage.create()
    release, running = threading.Event(), threading.Event()

    def slow(work: Callable[[Any], Any]) -> Any:
        running.set()
        assert release.wait(20)
        raise StorageUnavailable("It is away.")

    limits = Limits(queued_credentials=20)
    watched = Authenticator(storage, limits=limits)
    monkeypatch.setattr(storage, "read", slow)

    def start(text: str) -> Future[Any]:
        miss = watched.authenticate_cached(text, lambda: "10.0.0.1")
        assert isinstance(miss, Miss)
        return miss.start()

    known, *guesses = forged(limits.queued_credentials + 3)
    parsed = token_format.parse(known)
    assert parsed
    watched.cache.note_valid(parsed.digest, parsed.id)
    first = start(guesses[0])
    assert running.wait(10)
    queued = [start(each) for each in guesses[1:-1]]
    with pytest.raises(RateLimited):
        start(guesses[-1])
    urgent = start(known)
    release.set()

    for future in (first, *queued, urgent):
        assert isinstance(future.exception(20), StorageUnavailable)
    watched.loader.close()
    storage.close()
