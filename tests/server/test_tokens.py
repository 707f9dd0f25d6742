"""Tokens over gRPC: permissions, rotation, deletion."""

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from sqlalchemy import select

from rolecall.credentials import token_format
from rolecall.domain import CredentialKind, now
from rolecall.storage import tables
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import CHECK_ONLY, DAY, found_other, id_of, put_credential, put_session, restriction
from support.roles import ROLES
from support.rows import nothing_written
from support.server_calls import DENIED, INVALID, NOT_FOUND, OK, UNAUTHENTICATED, SiteCalls, failure_of
from support.sites import Site, add_member
from support.token_requests import DELETED, ORGANIZATION, PERSONAL, Organizational, Personal
from support.waiting import until

# Who may


def test_each_role_has_the_token_permissions_of_the_policy(site: Site) -> None:
    """Every RPC of three services for each of the five roles succeeds, or names the missing permission."""
    calls = SiteCalls(site)
    admin, contributor = site.members["ADMIN"].user_id, site.members["CONTRIBUTOR"].user_id
    anybody, personal, manager, top = 5, 3, 2, 1
    permissions = {
        "create": ("create", "personal-tokens"),
        "create-org": ("create", "organization-tokens"),
        "list-org": ("view", "organization-tokens"),
        "list-other": ("view", "member-tokens"),
        "delete-other": ("delete", "member-tokens"),
        "update": ("manage", "account"),
    }
    wrong = []
    for rank, role in enumerate(ROLES):
        program = id_of(put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER"))
        someones = id_of(put_credential(site, contributor if role != "CONTRIBUTOR" else admin))
        spare = put_credential(site, site.members[role].user_id)
        cases: list[tuple[Message, int, str]] = [
            (Personal(display_name="laptop"), personal, "create"),
            (Organizational(display_name="billing", role="VIEWER"), manager, "create-org"),
            (pb.ListTokensRequest(), anybody, ""),
            (pb.ListTokensRequest(user_id=site.members[role].user_id), anybody, ""),
            (pb.ListTokensRequest(kind=PERSONAL), anybody, ""),
            (pb.ListTokensRequest(kind=ORGANIZATION), manager, "list-org"),
            (pb.ListTokensRequest(user_id=contributor if role != "CONTRIBUTOR" else admin), manager, "list-other"),
            (pb.RotateTokenRequest(id=id_of(spare)), anybody, ""),
            (pb.RotateTokenRequest(id=program), manager, "create-org"),
            (pb.DeleteTokenRequest(id=id_of(spare)), anybody, ""),
            (pb.DeleteTokenRequest(id=program), manager, "delete-other"),
            (pb.DeleteTokenRequest(id=someones), manager, "delete-other"),
            (session.WhoAmIRequest(), anybody, ""),
            (organization.GetOrganizationRequest(), anybody, ""),
            (
                organization.UpdateOrganizationRequest(
                    organization=organization.Organization(display_name=f"Acme of {role}")
                ),
                top,
                "update",
            ),
        ]
        for request, roles, lacking in cases:
            try:
                calls.send(role, request)
                outcome: tuple[object, ...] = (OK,)
            except grpc.RpcError as error:
                failure = failure_of(error)
                outcome = (
                    failure.code,
                    failure.reason,
                    failure.metadata.get("action"),
                    failure.metadata.get("resource"),
                )
            expected = (OK,) if rank < roles else (DENIED, "PERMISSION_MISSING", *permissions[lacking])
            if outcome != expected:
                wrong.append((role, type(request).__name__, str(request), outcome, expected))
        assert calls.code(put_session(site, role), session.SignOutRequest()) is OK

    assert wrong == []


def test_token_of_another_person_cannot_be_rotated(site: Site) -> None:
    """Rotating another person's token: a manager gets TOKEN_NOT_FOUND, others PERMISSION_DENIED as for any id."""
    calls = SiteCalls(site)
    theirs = id_of(site.tokens["CONTRIBUTOR"])
    with nothing_written(site):
        owner = calls.refused("OWNER", pb.RotateTokenRequest(id=theirs))
        viewer = calls.refused("VIEWER", pb.RotateTokenRequest(id=theirs))

    assert (owner.code, owner.reason, owner.field) == (NOT_FOUND, "TOKEN_NOT_FOUND", "id")
    assert (viewer.code, viewer.reason) == (DENIED, "PERMISSION_MISSING")


def test_token_of_a_stronger_role_is_deleted_by_owners_only(site: Site) -> None:
    """An ADMIN may delete tokens of ADMINs and lower roles, an OWNER those of anybody."""
    calls = SiteCalls(site)
    owners = put_credential(site, site.members["OWNER"].user_id)
    other = add_member(site.storage, "acme", "al@acme.io", "ADMIN")
    admins = put_credential(site, other.user_id)
    with nothing_written(site):
        failure = calls.refused("ADMIN", pb.DeleteTokenRequest(id=id_of(owners)))

    assert (failure.code, failure.reason) == (DENIED, "PERMISSION_MISSING")
    assert failure.metadata["resource"] == "owners"
    assert calls.send("ADMIN", pb.DeleteTokenRequest(id=id_of(admins))).token.state == DELETED
    second = add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    assert calls.code("OWNER", pb.DeleteTokenRequest(id=id_of(put_credential(site, second.user_id)))) is OK


def test_an_organization_token_makes_no_tokens(site: Site) -> None:
    """An organization token of any role can't create tokens: PERSON_ONLY. It lists and deletes as its role permits."""
    calls = SiteCalls(site)
    program = calls.send("OWNER", Organizational(display_name="deploy", role="ADMIN")).secret
    other = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    with nothing_written(site):
        for request in (
            Personal(display_name="x"),
            Organizational(display_name="x", role="VIEWER"),
            pb.RotateTokenRequest(id=id_of(program)),
            pb.RotateTokenRequest(id=id_of(other)),
            pb.RotateTokenRequest(id=id_of(site.tokens["VIEWER"])),
            pb.RotateTokenRequest(id=token_format.new_id()),
        ):
            failure = calls.refused(program, request)

            assert (failure.code, failure.reason) == (DENIED, "PERSON_ONLY"), request
    assert len(calls.send(program, pb.ListTokensRequest()).tokens) == 8
    assert calls.code(program, pb.DeleteTokenRequest(id=id_of(other))) is OK
    assert calls.code(program, pb.DeleteTokenRequest(id=id_of(program))) is OK
    assert calls.code(program, session.WhoAmIRequest()) is UNAUTHENTICATED


def test_foreign_missing_and_other_ids_look_the_same(site: Site) -> None:
    """Foreign, missing and other ids get one error: NOT_FOUND for callers that may, else PERMISSION_DENIED."""
    calls = SiteCalls(site)
    foreign, missing = id_of(found_other(site)), token_format.new_id()
    a_session = id_of(put_session(site, "OWNER"))
    ids = [foreign, missing, a_session, "x", missing[:-1]]
    with nothing_written(site):
        for kind in (pb.RotateTokenRequest, pb.DeleteTokenRequest):
            for who, code in (("ADMIN", NOT_FOUND), ("CONTRIBUTOR", DENIED), ("VIEWER", DENIED)):
                shown = set()
                for token_id in ids:
                    failure = calls.refused(who, kind(id=token_id))
                    message = failure.message.replace(f"`{token_id}`", "`ID`")
                    metadata = tuple(
                        sorted((key, value) for key, value in failure.metadata.items() if key != "call_id")
                    )
                    shown.add((failure.code, failure.reason, failure.field, message, metadata))

                assert len(shown) == 1, shown
                assert shown.pop()[0] is code


def test_another_persons_token_looks_missing_without_the_right_to_delete_it(site: Site) -> None:
    """A CONTRIBUTOR can't learn from the answer which ids exist."""
    calls = SiteCalls(site)
    ids = [id_of(site.tokens["OWNER"]), id_of(site.tokens["VIEWER"]), token_format.new_id()]
    told_of = [
        calls.refused("CONTRIBUTOR", kind(id=i)) for kind in (pb.RotateTokenRequest, pb.DeleteTokenRequest) for i in ids
    ]
    shown = {(failure.code, failure.reason, failure.message, failure.field) for failure in told_of}

    assert len(shown) == 2
    assert {code for code, *_ in shown} == {DENIED}


def test_malformed_id_is_refused_and_not_repeated_in_the_error(site: Site) -> None:
    """An invalid id is refused without being repeated: it may be the token's text by mistake."""
    calls = SiteCalls(site)
    with nothing_written(site):
        for text in ("", site.tokens["VIEWER"], "a" * 65, "a b", "a\x00", "é" * 22, "../x", "*"):
            for request in (pb.RotateTokenRequest(id=text), pb.DeleteTokenRequest(id=text)):
                failure = calls.refused("OWNER", request)

                assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "id")
                assert site.tokens["VIEWER"] not in failure.message


# Rotating


def test_rotation_changes_only_the_secret(site: Site) -> None:
    """Id, name, role, restriction and expiry stay; the last four and the etag are new; the old secret is invalid."""
    calls = SiteCalls(site)
    made = calls.send(
        "OWNER", Personal(display_name="laptop", restriction=restriction(*CHECK_ONLY, ("secrets", "view")))
    )
    calls.send(made.secret, session.WhoAmIRequest())
    answer = calls.send("OWNER", pb.RotateTokenRequest(id=made.token.id, etag=made.token.etag))
    expected = pb.Token()
    expected.CopyFrom(made.token)
    expected.last_four, expected.etag = answer.secret[-4:], answer.token.etag
    answer.token.ClearField("last_use_time")

    assert calls.code(made.secret, session.WhoAmIRequest()) is UNAUTHENTICATED
    assert calls.code(answer.secret, session.WhoAmIRequest()) is OK
    assert answer.token == expected
    assert answer.token.etag != made.token.etag
    assert answer.revision == made.revision + 1


def test_an_old_secret_works_during_the_overlap_only(site: Site) -> None:
    """An old secret works until its overlap ends; each rotation ends earlier overlaps; the newest secret works on."""
    calls = SiteCalls(site)
    made = calls.send("OWNER", Organizational(display_name="deploy", role="VIEWER"))
    secrets = [made.secret]

    def rotate(seconds: float) -> list[bool]:
        overlap = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
        secrets.append(calls.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=overlap)).secret)
        return [calls.code(secret, session.WhoAmIRequest()) is OK for secret in secrets]

    assert rotate(24 * 3600) == [True, True]
    assert rotate(3600) == [True, True, True]
    assert rotate(0) == [False, False, False, True]
    assert rotate(1) == [False, False, False, True, True]
    until(lambda: calls.code(secrets[3], session.WhoAmIRequest()) is UNAUTHENTICATED, 3)
    assert [calls.code(secret, session.WhoAmIRequest()) is OK for secret in secrets] == [False] * 4 + [True]
    ends = site.storage.read(
        lambda tx: set(tx.connection.scalars(select(tables.retired_secrets.c.expire_time <= now())))
    )
    assert ends == {True}


def test_overlap_and_etag_are_validated(site: Site) -> None:
    """A negative, too long or malformed overlap, a stale etag, a deleted token: refused, and nothing is written."""
    calls = SiteCalls(site)
    token_id = id_of(put_credential(site, site.members["OWNER"].user_id))
    dead, expired = (put_credential(site, site.members["OWNER"].user_id, life=life) for life in (DAY, 1))
    calls.send("OWNER", pb.DeleteTokenRequest(id=id_of(dead)))
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", life=1)
    with nothing_written(site):
        for overlap in (
            Duration(seconds=-1),
            Duration(seconds=86_400, nanos=1000),
            Duration(seconds=86_401),
            Duration(seconds=2**63 - 1),
            Duration(seconds=1, nanos=-1),
        ):
            failure = calls.refused("OWNER", pb.RotateTokenRequest(id=token_id, overlap=overlap))
            assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "overlap")
        for request in (
            pb.RotateTokenRequest(id=token_id, etag="stale"),
            pb.DeleteTokenRequest(id=token_id, etag="stale"),
            organization.UpdateOrganizationRequest(
                organization=organization.Organization(display_name="x", etag="stale")
            ),
        ):
            failure = calls.refused("OWNER", request)
            assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        for text in (dead, expired, program):
            failure = calls.refused("OWNER", pb.RotateTokenRequest(id=id_of(text)))
            assert (failure.code, failure.reason, failure.field) == (NOT_FOUND, "TOKEN_NOT_FOUND", "id")


# Deleting


def test_deleted_token_never_works_again_and_stays_listed(site: Site) -> None:
    """A second DeleteToken gives the same answer and writes nothing, whatever the etag."""
    calls = SiteCalls(site)
    made = calls.send("OWNER", Organizational(display_name="deploy", role="VIEWER"))
    old = calls.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=Duration(seconds=3600)))
    assert calls.code(made.secret, session.WhoAmIRequest()) is OK
    answer = calls.send("OWNER", pb.DeleteTokenRequest(id=made.token.id, etag=old.token.etag))
    with nothing_written(site):
        again = calls.send("ADMIN", pb.DeleteTokenRequest(id=made.token.id, etag=old.token.etag))

    again.token.ClearField("last_use_time")
    answer.token.ClearField("last_use_time")
    assert (answer.token.state, answer.revision) == (DELETED, old.revision + 1)
    assert again == answer
    for secret in (made.secret, old.secret):
        assert calls.code(secret, session.WhoAmIRequest()) is UNAUTHENTICATED
    listed = calls.send("OWNER", pb.ListTokensRequest(state=DELETED)).tokens
    assert [token.id for token in listed] == [made.token.id]


def test_token_created_with_an_old_secret_does_not_outlive_it(site: Site) -> None:
    """During an overlap, a token created with the old secret expires with it, and the old secret can't rotate."""
    calls = SiteCalls(site)
    made = calls.send("OWNER", Personal(display_name="leaked"))
    rotated = calls.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=Duration(seconds=60)))
    minted = calls.send(made.secret, Personal(display_name="copy"))
    refused = calls.refused(made.secret, pb.RotateTokenRequest(id=made.token.id))

    assert minted.token.expire_time.ToMicroseconds() <= now() + 60_000_000
    assert (refused.code, refused.reason) == (DENIED, "ROLE_BEYOND_CALLER")
    assert calls.send(rotated.secret, Personal(display_name="as usual")).token.expire_time == made.token.expire_time
