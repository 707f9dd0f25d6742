"""MoveMembers over gRPC: all members with one role get another, by the rules that hold for each of them, or nobody."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from rolecall.client import to_dict
from rolecall.domain import CredentialKind
from rolecall.services import members as use_case
from rolecall.storage import tables
from rolecall.v1 import member_pb2 as pb
from support.audit_logs import INTACT, entries, verify
from support.credentials import put_credential
from support.people import PeopleCalls, change_rows, expected, inviting, outcome
from support.roles import ROLES
from support.rows import nothing_written
from support.server_calls import INVALID
from support.sites import Site, add_member

Move = pb.MoveMembersRequest
UNMET = grpc.StatusCode.FAILED_PRECONDITION


def roles_of(calls: PeopleCalls) -> dict[str, str]:
    """Return the role of each member, by address."""
    return {member.email: member.role for member in calls.members()}


def test_all_holders_get_the_new_role_in_one_change(site: Site) -> None:
    """One transaction and one audit entry; Checks see it at once; etags change; others keep their roles."""
    calls = PeopleCalls(site)
    before_all = roles_of(calls)
    added = [add_member(site.storage, "acme", f"v{number}@acme.io", "VIEWER") for number in range(3)]
    # A clock that was set back must not repeat an etag.
    ahead = max(member.update_time for member in added) + 10**12
    change_rows(site, tables.members, added[0].user_id, update_time=ahead)
    before = len(entries(site))

    moved = calls.send("OWNER", Move(from_role="VIEWER", to_role="CONTRIBUTOR"))
    after = {member.user_id: member for member in calls.members()}
    *_, entry = entries(site)

    user_ids = sorted([site.members["VIEWER"].user_id, *(member.user_id for member in added)])
    assert moved.member_count == 4
    assert {after[user_id].role for user_id in user_ids} == {"CONTRIBUTOR"}
    assert after[added[0].user_id].etag == replace(added[0], update_time=ahead + 1).etag
    assert all(after[member.user_id].etag != member.etag for member in added)
    assert {member.email: member.role for member in after.values() if member.user_id not in user_ids} == {
        email: role for email, role in before_all.items() if role != "VIEWER"
    }
    assert len(entries(site)) == before + 1
    assert (entry.action, entry.object) == ("MoveMembers", "role:VIEWER")
    assert to_dict(entry)["details"] == {
        "before": {"role": "VIEWER"},
        "after": {"role": "CONTRIBUTOR"},
        "members": user_ids,
    }
    assert verify(site) == INTACT


def test_moves_follow_rule_1(sqlite_site: Site) -> None:
    """Every caller, old and new role of the shipped policy, as for the change of one member."""
    calls, wrong = PeopleCalls(sqlite_site), []
    add_member(sqlite_site.storage, "acme", "second@acme.io", "OWNER")
    for caller in ROLES:
        for old in ROLES[1:]:
            for new in (role for role in ROLES if role != old):
                found = outcome(calls, caller, Move(from_role=old, to_role=new, validate_only=True))
                if found != expected(caller, "update", old, new):
                    wrong.append((caller, old, new, found))
    restricted = put_credential(sqlite_site, sqlite_site.members["OWNER"].user_id, only=(("members", "update"),))

    assert wrong == []
    assert outcome(calls, "ADMIN", Move(from_role="OWNER", to_role="VIEWER")) == "ROLE_BEYOND_CALLER"
    assert outcome(calls, restricted, Move(from_role="VIEWER", to_role="ADMIN")) == "ROLE_BEYOND_CALLER"


def test_the_last_owners_are_kept(site: Site) -> None:
    """Owners, however many, can't all be moved away; they can where another owner role stays held."""
    calls = PeopleCalls(site)
    add_member(site.storage, "acme", "second@acme.io", "OWNER")
    with nothing_written(site):
        for validate_only in (True, False):
            failure = calls.refused("OWNER", Move(from_role="OWNER", to_role="ADMIN", validate_only=validate_only))

            assert (failure.code, failure.reason, failure.field) == (UNMET, "LAST_OWNER", "from_role")


def test_two_moves_at_once_keep_an_owner(site: Site) -> None:
    """Of moves that run at the same time, none leaves the organization without an owner."""
    calls = PeopleCalls(site)
    moves = [Move(from_role="OWNER", to_role="VIEWER"), Move(from_role="ADMIN", to_role="OWNER")] * 4
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda move: outcome(calls, "OWNER", move), moves))

    assert "OWNER" in roles_of(calls).values()
    assert set(outcomes) <= {"OK", "LAST_OWNER", "PERMISSION_MISSING", "ROLE_BEYOND_CALLER", "WRITE_CONFLICT"}


def test_validation_counts_and_guards_by_its_etag(site: Site) -> None:
    """`validate_only` changes nothing; its etag fails once another member has the role."""
    calls = PeopleCalls(site)
    move = Move(from_role="VIEWER", to_role="CONTRIBUTOR", request_id=str(uuid.uuid4()))
    with nothing_written(site):
        move.validate_only = True
        seen = calls.send("OWNER", move)
    move.validate_only, move.etag = False, seen.etag
    late = add_member(site.storage, "acme", "late@acme.io", "VIEWER")
    site.forget()

    assert seen.member_count == 1
    assert calls.refused("OWNER", move).reason == "ETAG_MISMATCH"
    change_rows(site, tables.members, late.user_id, role="ADMIN")
    first = calls.send("OWNER", move)
    with nothing_written(site):
        assert calls.send("OWNER", move) == first
    assert first.member_count == 1
    assert first.etag == seen.etag


def test_what_keeps_the_old_role_is_counted(sqlite_site: Site) -> None:
    """Organization tokens and pending invitations with the old role are counted, not moved."""
    calls = PeopleCalls(sqlite_site)
    put_credential(sqlite_site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    calls.send("OWNER", inviting(("x@acme.io", "VIEWER"), ("y@acme.io", "ADMIN")))

    moved = calls.send("OWNER", Move(from_role="VIEWER", to_role="CONTRIBUTOR"))

    assert (moved.organization_token_count, moved.invitation_count) == (1, 1)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (Move(to_role="VIEWER"), "INVALID_FIELD", "from_role"),
        (Move(from_role="VIEWER"), "INVALID_FIELD", "to_role"),
        (Move(from_role="VIEWER", to_role="VIEWER"), "INVALID_FIELD", "to_role"),
        (Move(from_role="VIEWER", to_role="KING"), "UNKNOWN_ROLE_NAME", "to_role"),
        (Move(from_role="KING", to_role="VIEWER"), "UNKNOWN_ROLE_NAME", "from_role"),
        (Move(from_role="X" * 65, to_role="VIEWER"), "INVALID_FIELD", "from_role"),
    ],
)
def test_bad_roles_are_named(sqlite_site: Site, request_: Move, reason: str, field: str) -> None:
    """The error names the field of the role that is at fault."""
    failure = PeopleCalls(sqlite_site).refused("OWNER", request_)

    assert (failure.code, failure.reason, failure.field) == (INVALID, reason, field)


def test_a_role_that_the_policy_has_lost_can_be_moved(sqlite_site: Site) -> None:
    """Members with a role that the policy doesn't know, as after a restored backup, are moved by an owner only."""
    calls = PeopleCalls(sqlite_site)
    add_member(sqlite_site.storage, "acme", "old@acme.io", "RETIRED")
    sqlite_site.forget()

    assert outcome(calls, "ADMIN", Move(from_role="RETIRED", to_role="VIEWER")) == "ROLE_BEYOND_CALLER"
    assert calls.send("OWNER", Move(from_role="RETIRED", to_role="VIEWER")).member_count == 1


def test_too_many_members_are_refused(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction moves a bounded number of members; the error names the operator's command for more."""
    monkeypatch.setattr(use_case, "MAX_MOVED", 1)
    calls = PeopleCalls(sqlite_site)
    add_member(sqlite_site.storage, "acme", "more@acme.io", "VIEWER")
    with nothing_written(sqlite_site):
        failure = calls.refused("OWNER", Move(from_role="VIEWER", to_role="ADMIN"))

    assert (failure.reason, failure.field) == ("BATCH_SIZE", "from_role")
    assert "rolecall operator policy activate --move VIEWER=ADMIN" in failure.message


def test_nothing_to_move_changes_nothing(sqlite_site: Site) -> None:
    """Where no member has the role, the call succeeds without a new revision."""
    calls = PeopleCalls(sqlite_site)
    calls.send("OWNER", Move(from_role="VIEWER", to_role="ADMIN"))
    with nothing_written(sqlite_site):
        assert calls.send("OWNER", Move(from_role="VIEWER", to_role="ADMIN")).member_count == 0
