"""No credential makes anything stronger than itself: every RPC that hands out a secret, by whatever restriction."""

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from conftest import MakeSite, Site
from google.protobuf.duration_pb2 import Duration
from grpc_errors import told
from test_tokens import (
    CHECK_ONLY,
    DAY,
    DENIED,
    INVALID,
    OK,
    Desk,
    id_of,
    in_future,
    nothing_written,
    put_credential,
    put_session,
    restriction,
)

from rolecall.domain import CredentialKind
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb

Pairs = tuple[tuple[str, str], ...]

with (Path(__file__).parents[1] / "permissions.csv").open(encoding="utf-8") as _file:
    _CELLS = {(row["resource"], row["action"]) for row in csv.DictReader(_file)}
RESOURCES = sorted({resource for resource, _ in _CELLS} | {"secrets/prod", "secrets/prod/db", "projects/1"})
ACTIONS = sorted({action for _, action in _CELLS})
MATRIX = [(resource, action) for resource in RESOURCES for action in ACTIONS]

PROGRAMS = ("organization-tokens", "create")
PERSONS = ("personal-tokens", "create")
SECRETS = ("secrets", "view")

# What the presented credentials are cut down to, and what the wished tokens shall be.
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
WISHED_ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS", "EDITOR")


@dataclass
class Bench:
    """A desk that knows what each credential may, and counts what came of the attempts."""

    desk: Desk
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    stronger: list[object] = field(default_factory=list)
    known: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)

    def powers(self, text: str) -> frozenset[tuple[str, str]]:
        """All of the matrix that Check grants to whoever presents this."""
        if text not in self.known:
            items = [
                authorization.BatchCheckItem(subject_token=text, resource=resource, action=action)
                for resource, action in MATRIX
            ]
            answer = self.desk.send("OWNER", authorization.BatchCheckRequest(checks=items))
            granted = [result.decision == authorization.DECISION_ALLOW for result in answer.results]
            assert authorization.REASON_TOKEN_INVALID not in {result.reason for result in answer.results}
            self.known[text] = frozenset(pair for pair, allowed in zip(MATRIX, granted, strict=True) if allowed)
        return self.known[text]

    def attempt(self, caller: str, request: Any) -> None:
        """Try to get a secret, and compare what it may with what the caller may."""
        rpc = type(request).__name__.removesuffix("Request")
        try:
            answer = self.desk.send(caller, request)
        except grpc.RpcError as error:
            said = told(error)
            assert said.code in (DENIED, INVALID), (request, said)
            self.outcomes[rpc, said.reason] += 1
            return
        self.outcomes[rpc, "made"] += 1
        mine = self.desk.send(caller, session.WhoAmIRequest()).credential
        later = answer.token.expire_time.ToMicroseconds() > mine.expire_time.ToMicroseconds()
        if not self.powers(answer.secret) <= self.powers(caller) or (later and not caller.startswith("rcs")):
            beyond = sorted(self.powers(answer.secret) - self.powers(caller))[:5]
            self.stronger.append((rpc, str(request), beyond, later))


def wishes() -> list[Any]:
    """Every kind of token that could be asked for."""
    found: list[Any] = []
    for only in RESTRICTIONS:
        wished = None if only is None else restriction(*only)
        found.append(pb.CreatePersonalTokenRequest(name="x", restriction=wished))
        found += [pb.CreateOrganizationTokenRequest(name="x", role=r, restriction=wished) for r in WISHED_ROLES]
    return found


def try_everything(site: Site, roles: tuple[str, ...], restrictions: list[Pairs | None]) -> Bench:
    """Each credential of these roles and restrictions attempts whatever there is to attempt."""
    bench = Bench(Desk(site))
    for role in roles:
        user = site.members[role].user_id
        for only in restrictions:
            for caller in (
                put_credential(site, user, only=only),
                put_credential(site, user, only=only, kind=CredentialKind.SESSION),
            ):
                for request in wishes() if caller.startswith("rcp") else wishes()[:2]:
                    bench.attempt(caller, request)
    # What can be rotated: with each restriction and each kind of holder, shorter and longer lived.
    for role in roles:
        user = site.members[role].user_id
        for only in restrictions:
            caller = put_credential(site, user, only=only, life=10 * DAY)
            for target_only in RESTRICTIONS:
                for life in (9 * DAY, 11 * DAY):
                    target = put_credential(site, user, only=target_only, life=life)
                    bench.attempt(caller, pb.RotateTokenRequest(id=id_of(target)))
                for target_role in WISHED_ROLES[1:4]:
                    target = put_credential(
                        site, None, only=target_only, kind=CredentialKind.ORGANIZATION, role=target_role, life=9 * DAY
                    )
                    bench.attempt(caller, pb.RotateTokenRequest(id=id_of(target)))
    return bench


def test_what_a_credential_makes_is_within_it(sqlite_site: Site) -> None:
    """Refused, or Check grants the new one nothing that it doesn't grant the old one; nor does it live longer."""
    bench = try_everything(sqlite_site, ("OWNER", "CONTRIBUTOR"), RESTRICTIONS)

    assert bench.stronger == []
    for rpc in ("CreatePersonalToken", "CreateOrganizationToken", "RotateToken"):
        assert bench.outcomes[rpc, "made"] >= 15, bench.outcomes
        assert bench.outcomes[rpc, "ROLE_BEYOND_CALLER"] >= 25, bench.outcomes
        assert bench.outcomes[rpc, "PERMISSION_MISSING"] or rpc == "RotateToken", bench.outcomes


def test_denies_hold_for_what_a_credential_makes(make_site: MakeSite, sqlite_url: str, policy_folder: Path) -> None:
    """Where the caller's role is denied something, nothing that it makes may do it; no role lacks the deny."""
    denied = "p, ADMIN, secrets/prod, *, deny\np, EDITOR, secrets, view, allow\n"
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.write(denied)
    site = make_site(sqlite_url)
    bench = try_everything(site, ("ADMIN",), [None, (PROGRAMS, PERSONS, ("secrets", "*")), (("*", "*"),)])
    said = bench.desk.refused("ADMIN", pb.CreateOrganizationTokenRequest(name="x", role="VIEWER"))
    made = bench.desk.send("ADMIN", pb.CreateOrganizationTokenRequest(name="x", role="ADMIN"))
    beside = bench.desk.refused("ADMIN", pb.CreateOrganizationTokenRequest(name="x", role="EDITOR"))

    assert bench.stronger == []
    assert said.reason == beside.reason == "ROLE_BEYOND_CALLER"
    assert bench.outcomes["CreatePersonalToken", "made"]
    assert not {("secrets/prod", "view"), ("secrets/prod/db", "view")} & bench.powers(made.secret)
    assert ("secrets", "view") in bench.powers(made.secret)


def test_expiry_is_within_the_credential_that_mints(site: Site) -> None:
    """A token's is the bound, to the microsecond; a session's isn't."""
    desk = Desk(site)
    user = site.members["OWNER"].user_id
    short, signed_in = put_credential(site, user, life=DAY), put_session(site, "OWNER")
    end = desk.send(short, session.WhoAmIRequest()).credential.expire_time
    beyond = in_future(2 * DAY)
    for make in (
        lambda **when: pb.CreatePersonalTokenRequest(name="x", **when),
        lambda **when: pb.CreateOrganizationTokenRequest(name="x", role="ADMIN", **when),
    ):
        with nothing_written(site):
            for when in ({"expire_time": beyond}, {"ttl": Duration(seconds=86_401)}):
                assert desk.refused(short, make(**when)).field in when
            end_beyond = type(end)(seconds=end.seconds, nanos=end.nanos + 1000)
            assert end_beyond.nanos > 999_999_999 or desk.refused(short, make(expire_time=end_beyond)).field
        assert desk.send(short, make(expire_time=end)).token.expire_time == end
        assert desk.send(short, make()).token.expire_time == end
        assert desk.send(signed_in, make(expire_time=beyond)).token.expire_time.seconds == beyond.seconds


def test_a_restricted_credential_handles_no_freer_token(site: Site) -> None:
    """It neither rotates nor deletes its holder's tokens that may more; itself and narrower ones it does."""
    desk = Desk(site)
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
                said = desk.refused(caller, request)
                assert (said.code, said.reason, said.field) == (DENIED, "ROLE_BEYOND_CALLER", "id")
        # Others' tokens need a permission that it hasn't.
        said = desk.refused(caller, pb.DeleteTokenRequest(id=id_of(site.tokens["VIEWER"])))
        assert (said.code, said.reason) == (DENIED, "PERMISSION_MISSING")

    for target in (narrower, equal):
        assert desk.code(caller, pb.RotateTokenRequest(id=id_of(target))) is OK
        assert desk.code(caller, pb.DeleteTokenRequest(id=id_of(target))) is OK
    renewed = desk.send(caller, pb.RotateTokenRequest(id=id_of(caller))).secret
    assert desk.code(renewed, pb.DeleteTokenRequest(id=id_of(renewed))) is OK


def test_a_restricted_manager_deletes_nobody_beyond_it(site: Site) -> None:
    """Whose role is beyond what the credential itself may, it can't delete the tokens of, whatever its holder may."""
    desk = Desk(site)
    caller = put_credential(site, site.members["OWNER"].user_id, only=(("member-tokens", "*"),))
    wide = put_credential(site, site.members["ADMIN"].user_id, only=(("*", "*"),))
    viewers = put_credential(site, site.members["VIEWER"].user_id)
    with nothing_written(site):
        said = desk.refused(caller, pb.DeleteTokenRequest(id=id_of(viewers)))

    assert (said.code, said.reason, said.metadata["resource"]) == (DENIED, "PERMISSION_MISSING", "owners")
    assert desk.code(wide, pb.DeleteTokenRequest(id=id_of(viewers))) is OK


def test_a_longer_lived_token_is_not_rotated_by_a_shorter_one(site: Site) -> None:
    """Its new secret would outlive the credential; the token itself and a session may."""
    desk = Desk(site)
    user = site.members["OWNER"].user_id
    short, long = put_credential(site, user, life=DAY), put_credential(site, user, life=2 * DAY)
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", life=2 * DAY)
    with nothing_written(site):
        for target in (long, program):
            said = desk.refused(short, pb.RotateTokenRequest(id=id_of(target)))
            assert (said.code, said.reason, said.field) == (DENIED, "ROLE_BEYOND_CALLER", "id")

    assert desk.code(long, pb.RotateTokenRequest(id=id_of(short))) is OK
    assert desk.code(put_session(site, "OWNER"), pb.RotateTokenRequest(id=id_of(program))) is OK
    assert desk.code(long, pb.RotateTokenRequest(id=id_of(long))) is OK
