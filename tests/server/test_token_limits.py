"""No credential creates one that may more than itself: every RPC that returns a secret, with every restriction."""

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from rolecall.domain import CredentialKind
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import CHECK_ONLY, DAY, id_of, in_future, put_credential, put_session, restriction
from support.environment import PERMISSIONS_FILE
from support.rows import nothing_written
from support.server_calls import DENIED, INVALID, OK, SiteCalls, failure_of
from support.sites import MakeSite, Site

Pairs = tuple[tuple[str, str], ...]

with PERMISSIONS_FILE.open(encoding="utf-8") as _file:
    _CELLS = {(row["resource"], row["action"]) for row in csv.DictReader(_file)}
RESOURCES = sorted({resource for resource, _ in _CELLS} | {"secrets/prod", "secrets/prod/db", "projects/1"})
ACTIONS = sorted({action for _, action in _CELLS})
MATRIX = [(resource, action) for resource in RESOURCES for action in ACTIONS]

PROGRAMS = ("organization-tokens", "create")
PERSONS = ("personal-tokens", "create")
SECRETS = ("secrets", "view")

# Restrictions of the presented credentials, and of the requested tokens.
RESTRICTIONS: list[Pairs | None] = [
    None,
    CHECK_ONLY,
    (PERSONS,),
    (PERSONS, SECRETS),
    (PERSONS, ("secrets/prod*", "*")),
    (PROGRAMS, PERSONS),
    (PROGRAMS, PERSONS, ("*", "view")),
    (("*-tokens", "*"), ("secrets", "*"), ("projects", "*")),
    (("*", "*"),),
]
REQUESTED_ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS", "EDITOR")


@dataclass
class PowerComparison:
    """Compares the permissions of created tokens with those of their creators, and counts the results."""

    calls: SiteCalls
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    stronger: list[object] = field(default_factory=list)
    known: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)

    def powers(self, text: str) -> frozenset[tuple[str, str]]:
        """Return the pairs of the matrix that Check grants to this presented token."""
        if text not in self.known:
            items = [
                authorization.BatchCheckItem(subject_token=text, resource=resource, action=action)
                for resource, action in MATRIX
            ]
            answer = self.calls.send("OWNER", authorization.BatchCheckRequest(checks=items))
            granted = [result.decision == authorization.DECISION_ALLOW for result in answer.results]
            assert authorization.REASON_TOKEN_INVALID not in {result.reason for result in answer.results}
            self.known[text] = frozenset(pair for pair, allowed in zip(MATRIX, granted, strict=True) if allowed)
        return self.known[text]

    def attempt(self, caller: str, request: Any) -> None:
        """Request a secret, and compare its permissions with the caller's."""
        rpc = type(request).__name__.removesuffix("Request")
        try:
            answer = self.calls.send(caller, request)
        except grpc.RpcError as error:
            failure = failure_of(error)
            assert failure.code in (DENIED, INVALID), (request, failure)
            self.outcomes[rpc, failure.reason] += 1
            return
        self.outcomes[rpc, "made"] += 1
        mine = self.calls.send(caller, session.WhoAmIRequest()).credential
        later = answer.token.expire_time.ToMicroseconds() > mine.expire_time.ToMicroseconds()
        if not self.powers(answer.secret) <= self.powers(caller) or (later and not caller.startswith("rcs")):
            beyond = sorted(self.powers(answer.secret) - self.powers(caller))[:5]
            self.stronger.append((rpc, str(request), beyond, later))


def token_requests() -> list[Any]:
    """Return a request for every kind of token."""
    found: list[Any] = []
    for only in RESTRICTIONS:
        bound = None if only is None else restriction(*only)
        found.append(pb.CreatePersonalTokenRequest(display_name="x", restriction=bound))
        found += [
            pb.CreateOrganizationTokenRequest(display_name="x", role=r, restriction=bound) for r in REQUESTED_ROLES
        ]
    return found


def compare_all_requests(site: Site, roles: tuple[str, ...], restrictions: list[Pairs | None]) -> PowerComparison:
    """Send every request with each credential of these roles and restrictions."""
    comparison = PowerComparison(SiteCalls(site))
    for role in roles:
        user = site.members[role].user_id
        for only in restrictions:
            for caller in (
                put_credential(site, user, only=only),
                put_credential(site, user, only=only, kind=CredentialKind.SESSION),
            ):
                for request in token_requests() if caller.startswith("rcp") else token_requests()[:2]:
                    comparison.attempt(caller, request)
    # What can be rotated: with each restriction and each kind of holder, shorter and longer lived.
    for role in roles:
        user = site.members[role].user_id
        for only in restrictions:
            caller = put_credential(site, user, only=only, life=10 * DAY)
            for target_only in RESTRICTIONS:
                for life in (9 * DAY, 11 * DAY):
                    target = put_credential(site, user, only=target_only, life=life)
                    comparison.attempt(caller, pb.RotateTokenRequest(id=id_of(target)))
                for target_role in REQUESTED_ROLES[1:4]:
                    target = put_credential(
                        site, None, only=target_only, kind=CredentialKind.ORGANIZATION, role=target_role, life=9 * DAY
                    )
                    comparison.attempt(caller, pb.RotateTokenRequest(id=id_of(target)))
    return comparison


def test_created_token_may_no_more_than_the_caller(sqlite_site: Site) -> None:
    """Creation is refused, or the new token has no permission that the old one lacks, and no later expiry."""
    comparison = compare_all_requests(sqlite_site, ("OWNER", "CONTRIBUTOR"), RESTRICTIONS)

    assert comparison.stronger == []
    for rpc in ("CreatePersonalToken", "CreateOrganizationToken", "RotateToken"):
        assert comparison.outcomes[rpc, "made"] >= 15, comparison.outcomes
        assert comparison.outcomes[rpc, "ROLE_BEYOND_CALLER"] >= 25, comparison.outcomes
        assert comparison.outcomes[rpc, "PERMISSION_MISSING"] or rpc == "RotateToken", comparison.outcomes


def test_deny_rules_of_the_caller_hold_for_created_tokens(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """A deny rule of the caller's role applies to each token that the caller creates."""
    denied = "p, ADMIN, secrets/prod, *, deny\np, EDITOR, secrets, view, allow\n"
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.write(denied)
    site = make_site(sqlite_url)
    comparison = compare_all_requests(site, ("ADMIN",), [None, (PROGRAMS, PERSONS, ("secrets", "*")), (("*", "*"),)])
    failure = comparison.calls.refused("ADMIN", pb.CreateOrganizationTokenRequest(display_name="x", role="VIEWER"))
    made = comparison.calls.send("ADMIN", pb.CreateOrganizationTokenRequest(display_name="x", role="ADMIN"))
    beside = comparison.calls.refused("ADMIN", pb.CreateOrganizationTokenRequest(display_name="x", role="EDITOR"))

    assert comparison.stronger == []
    assert failure.reason == beside.reason == "ROLE_BEYOND_CALLER"
    assert comparison.outcomes["CreatePersonalToken", "made"]
    assert not {("secrets/prod", "view"), ("secrets/prod/db", "view")} & comparison.powers(made.secret)
    assert ("secrets", "view") in comparison.powers(made.secret)


def test_created_token_expires_no_later_than_the_creating_one(site: Site) -> None:
    """The expiry of the creating token is the maximum, to the microsecond; that of a session isn't."""
    calls = SiteCalls(site)
    user = site.members["OWNER"].user_id
    short, signed_in = put_credential(site, user, life=DAY), put_session(site, "OWNER")
    end = calls.send(short, session.WhoAmIRequest()).credential.expire_time
    beyond = in_future(2 * DAY)
    for make in (
        lambda **when: pb.CreatePersonalTokenRequest(display_name="x", **when),
        lambda **when: pb.CreateOrganizationTokenRequest(display_name="x", role="ADMIN", **when),
    ):
        with nothing_written(site):
            for when in ({"expire_time": beyond}, {"ttl": Duration(seconds=86_401)}):
                assert calls.refused(short, make(**when)).field in when
            end_beyond = type(end)(seconds=end.seconds, nanos=end.nanos + 1000)
            assert end_beyond.nanos > 999_999_999 or calls.refused(short, make(expire_time=end_beyond)).field
        assert calls.send(short, make(expire_time=end)).token.expire_time == end
        assert calls.send(short, make()).token.expire_time == end
        assert calls.send(signed_in, make(expire_time=beyond)).token.expire_time.seconds == beyond.seconds


def test_restricted_credential_manages_no_less_restricted_token(site: Site) -> None:
    """A restricted credential rotates and deletes its holder's tokens that are at least as restricted, no others."""
    calls = SiteCalls(site)
    user = site.members["OWNER"].user_id
    caller = put_credential(site, user, only=(PERSONS, SECRETS))
    free = put_credential(site, user)
    freer = [put_credential(site, user, only=only) for only in ((PERSONS, SECRETS, *CHECK_ONLY), (("*", "*"),))]
    beside = put_credential(site, user, only=CHECK_ONLY)
    narrower = put_credential(site, user, only=(("secrets/prod", "view"),), life=DAY)
    equal = put_credential(site, user, only=(SECRETS, PERSONS), life=DAY)
    with nothing_written(site):
        for target in (site.tokens["OWNER"], free, *freer, beside):
            for request in (pb.RotateTokenRequest(id=id_of(target)), pb.DeleteTokenRequest(id=id_of(target))):
                failure = calls.refused(caller, request)
                assert (failure.code, failure.reason, failure.field) == (DENIED, "ROLE_BEYOND_CALLER", "id")
        # Others' tokens need a permission that it hasn't.
        failure = calls.refused(caller, pb.DeleteTokenRequest(id=id_of(site.tokens["VIEWER"])))
        assert (failure.code, failure.reason) == (DENIED, "PERMISSION_MISSING")

    for target in (narrower, equal):
        assert calls.code(caller, pb.RotateTokenRequest(id=id_of(target))) is OK
        assert calls.code(caller, pb.DeleteTokenRequest(id=id_of(target))) is OK
    renewed = calls.send(caller, pb.RotateTokenRequest(id=id_of(caller))).secret
    assert calls.code(renewed, pb.DeleteTokenRequest(id=id_of(renewed))) is OK


def test_restricted_credential_deletes_no_token_of_a_stronger_role(site: Site) -> None:
    """A restricted credential can't delete the tokens of a role that has more permissions than the credential."""
    calls = SiteCalls(site)
    caller = put_credential(site, site.members["OWNER"].user_id, only=(("member-tokens", "*"),))
    wide = put_credential(site, site.members["ADMIN"].user_id, only=(("*", "*"),))
    viewers = put_credential(site, site.members["VIEWER"].user_id)
    with nothing_written(site):
        failure = calls.refused(caller, pb.DeleteTokenRequest(id=id_of(viewers)))

    assert (failure.code, failure.reason, failure.metadata["resource"]) == (DENIED, "PERMISSION_MISSING", "owners")
    assert calls.code(wide, pb.DeleteTokenRequest(id=id_of(viewers))) is OK


def test_a_longer_lived_token_is_not_rotated_by_a_shorter_one(site: Site) -> None:
    """A credential can't rotate a token that expires later than itself; a session can."""
    calls = SiteCalls(site)
    user = site.members["OWNER"].user_id
    short, long = put_credential(site, user, life=DAY), put_credential(site, user, life=2 * DAY)
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", life=2 * DAY)
    with nothing_written(site):
        for target in (long, program):
            failure = calls.refused(short, pb.RotateTokenRequest(id=id_of(target)))
            assert (failure.code, failure.reason, failure.field) == (DENIED, "ROLE_BEYOND_CALLER", "id")

    assert calls.code(long, pb.RotateTokenRequest(id=id_of(short))) is OK
    assert calls.code(put_session(site, "OWNER"), pb.RotateTokenRequest(id=id_of(program))) is OK
    assert calls.code(long, pb.RotateTokenRequest(id=id_of(long))) is OK
