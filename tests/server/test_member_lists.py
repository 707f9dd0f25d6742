"""Lists of members and invitations over gRPC: filters, orders, and pages that joined are the list."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message

from rolecall.domain import now
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import token_pb2 as tokens
from support.credentials import found_other, put_credential
from support.people import PeopleCalls, change_rows, inviting
from support.roles import ROLES
from support.rows import nothing_written
from support.server_calls import DENIED, INVALID, OK
from support.sites import Site, add_member

MINUTE = 60_000_000
ListMembers, ListInvitations = members.ListMembersRequest, pb.ListInvitationsRequest
BY_EMAIL, BY_NAME, NEWEST = (
    members.MEMBER_ORDER_EMAIL,
    members.MEMBER_ORDER_DISPLAY_NAME,
    members.MEMBER_ORDER_NEWEST,
)
PENDING, EXPIRED, ACCEPTED, DELETED = (
    pb.INVITATION_STATE_PENDING,
    pb.INVITATION_STATE_EXPIRED,
    pb.INVITATION_STATE_ACCEPTED,
    pb.INVITATION_STATE_DELETED,
)


def all_entries(ask: Callable[..., Any], field: str, sizes: Sequence[int]) -> list[Any]:
    """Return the entries of all pages, requested with these sizes in turn; no page is larger than requested."""
    found: list[Any] = []
    token = ""
    for size in itertools.cycle(sizes):
        answer = ask(page_size=size, page_token=token)
        page = list(getattr(answer, field))
        assert 0 < len(page) <= size
        found += page
        token = answer.next_page_token
        if not token:
            return found
        assert len(page) == size
    raise AssertionError("there are always sizes")


def named(site: Site, email: str, name: str, role: str = "VIEWER") -> str:
    """A new member with this name; answers the address."""
    put = add_member(site.storage, "acme", email, role)
    change_rows(site, tables.members, put.user_id, display_name=name)
    return email


def found_by(calls: PeopleCalls, text: str) -> set[str]:
    """The addresses of the members that a text finds."""
    return {member.email for member in calls.members(text=text)}


# Members


@pytest.mark.parametrize("order", [BY_EMAIL, BY_NAME, NEWEST], ids=["email", "name", "newest"])
def test_pages_of_members_joined_are_the_list(site: Site, order: Any) -> None:
    """Pages of one to three, of varying sizes, joined are the list in each order, filtered or not, without gaps."""
    calls = PeopleCalls(site)
    # Names and moments that several share, so that only the tie-breaker tells them apart.
    for number in range(8):
        put = add_member(site.storage, "acme", f"Zoe.{number}@acme.io", "ADMIN" if number % 2 else "VIEWER")
        change_rows(site, tables.members, put.user_id, display_name="Zoe", create_time=1_000_000 + number // 3)
    filters: tuple[dict[str, Any], ...] = ({}, {"role": "ADMIN"}, {"text": "zOE"}, {"role": "VIEWER", "text": "zoe."})
    for asked in filters:
        whole = calls.members(order=order, **asked)
        for sizes in ((1,), (2,), (3,), (3, 1, 2), (1, 1000)):
            assert (
                all_entries(
                    lambda **page: calls.send("OWNER", ListMembers(order=order, **asked, **page)),  # noqa: B023
                    "members",
                    sizes,
                )
                == whole
            ), (asked, sizes)
        assert len({member.user_id for member in whole}) == len(whole)
    everybody = calls.members(order=order)

    assert len(everybody) == 13
    if order == BY_EMAIL:
        assert [one.email.lower() for one in everybody] == sorted(one.email.lower() for one in everybody)
        assert everybody == calls.members()
    elif order == BY_NAME:
        # In any collation of the database, equal names are adjacent.
        names = [name for name, _ in itertools.groupby(one.display_name for one in everybody)]
        assert len(names) == len(set(names)) == 6
    else:
        times = [one.create_time.ToMicroseconds() for one in everybody]
        assert times == sorted(times, reverse=True)


def test_members_are_filtered_by_role(sqlite_site: Site) -> None:
    """Each role may look; a role that nobody holds finds nobody; another organization's don't show."""
    calls = PeopleCalls(sqlite_site)
    found_other(sqlite_site)
    for role in ROLES:
        (found,) = calls.members(role, role=role)

        assert found.role == role
        assert found.user_id == sqlite_site.members[role].user_id
    calls.send("OWNER", members.ChangeMemberRoleRequest(user_id=sqlite_site.members["VIEWER"].user_id, role="ADMIN"))
    assert calls.members(role="VIEWER") == []


@pytest.mark.parametrize(
    ("role", "advice"),
    [
        ("CHIEF", ": choose one of OWNER"),
        ("owner", "did you mean `OWNER`?"),
        ("viewr", "did you mean `VIEWER`?"),
    ],
)
def test_filter_by_an_unknown_role_is_refused(sqlite_site: Site, role: str, advice: str) -> None:
    """A role that the policy doesn't have is no empty list: the nearest name is suggested, in any case."""
    calls = PeopleCalls(sqlite_site)

    for request in (ListMembers(role=role), ListInvitations(role=role)):
        failure = calls.refused("OWNER", request)

        assert (failure.code, failure.reason, failure.field) == (INVALID, "UNKNOWN_ROLE_NAME", "role")
        assert advice in failure.message


def test_text_filter_has_no_wildcards(site: Site) -> None:
    """`%`, `_` and a backslash stand for themselves; A to Z match in either case, in the address and in the name."""
    calls = PeopleCalls(site)
    percent, under = named(site, "percent@x.io", "100% Pat"), named(site, "under_score@x.io", "Ursula")
    back, slash = named(site, "back@x.io", "C:\\Bea"), named(site, "slash@x.io", "and/or")
    plain = named(site, "Plain@X.io", "Petra O'Hara")

    assert found_by(calls, "%") == {percent}
    assert found_by(calls, "0% p") == {percent}
    assert found_by(calls, "_") == {under}
    assert found_by(calls, "r_s") == {under}
    assert found_by(calls, "\\") == {back}
    assert found_by(calls, ":\\bEA") == {back}
    assert found_by(calls, "/") == {slash}
    assert found_by(calls, "o'hara") == found_by(calls, "PLAIN@x.IO") == found_by(calls, "petra o") == {plain}
    assert found_by(calls, "x.io") == {percent, under, back, slash, plain}
    assert found_by(calls, "p%t") == found_by(calls, "' OR ''='") == set()


def test_text_filter_matches_display_names(site: Site) -> None:
    """A name of any letters is found by the same text, and by a part of it, on both databases."""
    calls = PeopleCalls(site)
    names = ("ÄNNE", "Änne Öz", "ΣΊΣΥΦΟΣ", "İpek", "STRAẞE")
    emails = [named(site, f"q{number}@x.io", name) for number, name in enumerate(names)]
    missed = [
        (name, part)
        for name, email in zip(names, emails, strict=True)
        for part in (name, name[2:], name[1:4])
        if email not in found_by(calls, part)
    ]

    assert missed == []


def test_text_filter_matches_addresses(site: Site) -> None:
    """An address with a domain of any letters is found as lists show it, and as mail servers write it."""
    calls = PeopleCalls(site)
    joined_as = calls.join("ann@bücher.example", "VIEWER").member.email

    for text in ("bücher", "@bücher.example", "xn--bcher-kva", joined_as):
        assert found_by(calls, text) == {joined_as}, text
        accepted = calls.send("OWNER", ListInvitations(text=text, show_deleted=True)).invitations
        assert [one.email for one in accepted] == [joined_as], text


# Invitations


def test_pages_of_invitations_joined_are_the_list(site: Site) -> None:
    """The newest first, those of one batch in some order that stays; nothing twice, nothing missed."""
    calls = PeopleCalls(site)
    calls.invite("OWNER", *((f"p{number}@x.io", "VIEWER") for number in range(5)))
    calls.invite("ADMIN", *((f"q{number}@x.io", "ADMIN") for number in range(4)))
    for asked in ({}, {"role": "VIEWER"}, {"state": PENDING}, {"text": "P"}):
        whole = list(calls.send("OWNER", ListInvitations(page_size=1000, **asked)).invitations)
        for sizes in ((1,), (2,), (3,), (2, 1, 3)):
            assert (
                all_entries(
                    lambda **page: calls.send("OWNER", ListInvitations(**asked, **page)),  # noqa: B023
                    "invitations",
                    sizes,
                )
                == whole
            ), (asked, sizes)
        assert len({one.id for one in whole}) == len(whole) in {9, 5}
    everybody = calls.send("OWNER", ListInvitations()).invitations

    assert [one.email[0] for one in everybody] == ["q"] * 4 + ["p"] * 5


def test_invitations_are_filtered_by_state_role_and_text(site: Site) -> None:
    """Invitations are filtered by present state; `%`, `_` and a backslash are literal; foreign ones don't show."""
    calls = PeopleCalls(site)
    made = calls.invite(
        "OWNER",
        ("late@x.io", "VIEWER"),
        ("in@x.io", "ADMIN"),
        ("out@x.io", "ADMIN"),
        ("a_b@x.io", "VIEWER"),
        ("Z@x.io", "OWNER"),
    )
    change_rows(site, tables.invitations, made[0].id, expire_time=now())
    calls.accept(made[1])
    calls.send("OWNER", pb.DeleteInvitationRequest(id=made[2].id))
    calls.send(found_other(site), inviting(("z@x.io", "VIEWER")))

    def listed(**asked: Any) -> list[str]:
        found = calls.send("ADMIN", ListInvitations(**asked)).invitations
        assert all(one.state == asked.get("state", one.state) for one in found)
        return sorted(one.email for one in found)

    assert listed(state=EXPIRED) == ["late@x.io"]
    assert listed(state=ACCEPTED) == ["in@x.io"]
    assert listed(state=DELETED) == ["out@x.io"]
    assert listed(state=PENDING) == ["Z@x.io", "a_b@x.io"]
    assert listed(role="ADMIN", show_deleted=True) == ["in@x.io", "out@x.io"]
    assert listed(role="ADMIN") == []
    assert listed(role="ADMIN", state=DELETED, text="OUT@") == ["out@x.io"]
    assert listed(text="_") == ["a_b@x.io"]
    assert listed(text="z@X") == ["Z@x.io"]
    assert listed(text="%") == listed(text="\\") == []
    assert len(listed(show_deleted=True)) == 5
    assert listed() == ["Z@x.io", "a_b@x.io", "late@x.io"]
    # The address is invited anew: the older one stays expired.
    calls.invite("OWNER", ("LATE@x.io", "VIEWER"))
    assert listed(state=EXPIRED) == ["late@x.io"]
    assert listed(text="late", state=PENDING) == ["LATE@x.io"]


# Both


def test_page_token_of_another_list_is_refused(sqlite_site: Site) -> None:
    """A token that is changed, or of another RPC, order, filter or organization: INVALID_ARGUMENT PAGE_TOKEN."""
    calls = PeopleCalls(sqlite_site)
    other = found_other(sqlite_site)
    calls.invite("OWNER", ("a@x.io", "VIEWER"), ("b@x.io", "VIEWER"))
    for number in range(3):
        add_member(sqlite_site.storage, "acme", f"v{number}@acme.io", "VIEWER")
    by_email = calls.send("OWNER", ListMembers(page_size=1)).next_page_token
    of_role = calls.send("OWNER", ListMembers(page_size=1, role="VIEWER")).next_page_token
    invited = calls.send("OWNER", ListInvitations(page_size=1)).next_page_token
    of_tokens = calls.send("OWNER", tokens.ListTokensRequest(page_size=1)).next_page_token
    assert all((by_email, of_role, invited, of_tokens))
    middle = len(by_email) // 2
    with_changed_character = by_email[:middle] + ("A" if by_email[middle] != "A" else "B") + by_email[middle + 1 :]
    cases: list[tuple[str, Message]] = [
        *(
            ("OWNER", ListMembers(page_token=token))
            for token in (with_changed_character, by_email + "A", by_email[:-1], "x", "é", "%")
        ),
        *(("OWNER", ListMembers(page_token=token)) for token in (of_role, invited, of_tokens, "A" * 10_000)),
        ("OWNER", ListMembers(page_token=by_email, order=BY_NAME)),
        ("OWNER", ListMembers(page_token=by_email, order=NEWEST)),
        ("OWNER", ListMembers(page_token=by_email, role="VIEWER")),
        ("OWNER", ListMembers(page_token=by_email, text="a")),
        ("OWNER", ListMembers(page_token=of_role, role="ADMIN")),
        (other, ListMembers(page_token=by_email)),
        ("OWNER", ListInvitations(page_token=by_email)),
        ("OWNER", ListInvitations(page_token=invited + "=")),
        ("OWNER", ListInvitations(page_token=invited, state=PENDING)),
        ("OWNER", ListInvitations(page_token=invited, role="VIEWER")),
        ("OWNER", ListInvitations(page_token=invited, text="x")),
        (other, ListInvitations(page_token=invited)),
    ]
    for token, request in cases:
        failure = calls.refused(token, request)

        assert (failure.code, failure.reason, failure.field) == (INVALID, "PAGE_TOKEN", "page_token"), request
        assert "ask for the first page again" in failure.message
    # Another size, the order by its other name, and another member's eyes are no other list.
    for token, request in (
        ("VIEWER", ListMembers(page_token=by_email, page_size=7, order=BY_EMAIL, organization="acme")),
        ("ADMIN", ListInvitations(page_token=invited, page_size=9)),
    ):
        assert calls.send(token, request)


def test_invalid_list_requests_are_refused(sqlite_site: Site) -> None:
    """Each with its field: sizes out of bounds, an unknown order or state, a text or role longer than any."""
    calls = PeopleCalls(sqlite_site)
    both: list[Callable[..., Message]] = [ListMembers, ListInvitations]
    cases: list[tuple[Message, str, str]] = [
        *((kind(page_size=size), "page_size", "1 to 1000") for kind in both for size in (-1, -(2**31))),
        *((kind(text="x" * 255), "text", "shorten it") for kind in both),
        *((kind(text="a\0b"), "text", "NUL") for kind in both),
        *((kind(role="x" * 65), "role", "see ListRoles") for kind in both),
        (ListMembers(order=7), "order", "give email"),  # type: ignore[arg-type]
        (ListInvitations(state=7), "state", "give pending"),  # type: ignore[arg-type]
    ]
    for request, field, advice in cases:
        failure = calls.refused("OWNER", request)

        assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", field), request
        assert advice in failure.message
    assert len(calls.send("OWNER", ListMembers(page_size=1000)).members) == 5


def test_filter_by_an_impossible_role_name_is_handled(site: Site) -> None:
    """A filter by a role of any characters finds no member, or the field is refused; the database never fails."""
    calls = PeopleCalls(site)
    for role in ("\0", "OWNER\0", "\U0001f600", "' OR ''='"):
        for request in (ListMembers(role=role), ListInvitations(role=role)):
            code = calls.code("OWNER", request)

            assert code in {OK, INVALID}, request
            assert code is INVALID or not calls.send("OWNER", request).ByteSize()


def test_lists_need_a_permission(sqlite_site: Site) -> None:
    """Members show to every role, invitations to roles that may invite; the credential's restriction counts."""
    calls = PeopleCalls(sqlite_site)
    (made,) = calls.invite("OWNER", ("a@x.io", "VIEWER"))
    owner = sqlite_site.members["OWNER"].user_id
    check_only = put_credential(sqlite_site, owner, only=(("authorization", "check"),))
    inviter = put_credential(sqlite_site, owner, only=(("members", "invite"),))
    with nothing_written(sqlite_site):
        for token in (*ROLES[2:], check_only):
            for request in (ListInvitations(), *(pb.GetInvitationRequest(id=one) for one in (made.id, "x"))):
                failure = calls.refused(token, request)

                assert (failure.code, failure.reason) == (DENIED, "PERMISSION_MISSING")
                assert (failure.metadata["resource"], failure.metadata["action"]) == ("members", "invite")
        for token in (check_only, inviter):
            for request in (ListMembers(), members.GetMemberRequest(user_id=owner)):
                assert calls.refused(token, request).metadata["action"] == "view"

    for token in ("OWNER", "ADMIN", inviter):
        assert list(calls.send(token, ListInvitations()).invitations) == [made]
        assert calls.send(token, pb.GetInvitationRequest(id=made.id)).invitation == made
