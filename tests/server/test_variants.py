"""A server under every shipped policy: the policy alone decides which roles may manage which, by any names."""

import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count, product
from pathlib import Path

import pytest

from rolecall import Client
from rolecall.client.assignments import NewAssignment
from rolecall.domain import now
from rolecall.errors import LastOwner, PermissionMissing, RoleBeyondCaller
from rolecall.services.operator_tokens import issue
from support.environment import ROOT
from support.sites import MakeSite, add_member

BELOW_OWNER = {"ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"}
ALL_FIVE = BELOW_OWNER | {"OWNER"}
ALL_THREE = {"ADMIN", "EDITOR", "VIEWER"}

# Folder, verb, and which roles each role may handle; a role that isn't there may handle none.
TABLE: list[tuple[str, str, dict[str, set[str]]]] = [
    *((".", verb, {"OWNER": ALL_FIVE, "ADMIN": BELOW_OWNER}) for verb in ("invite", "update", "remove")),
    ("variants/owner-managed", "invite", {"OWNER": ALL_FIVE, "ADMIN": BELOW_OWNER}),
    ("variants/owner-managed", "update", {"OWNER": ALL_FIVE}),
    ("variants/owner-managed", "remove", {"OWNER": ALL_FIVE}),
    *(("variants/viewer-editor-admin", verb, {"ADMIN": ALL_THREE}) for verb in ("invite", "update", "remove")),
]

_numbers = count()


@pytest.mark.parametrize(
    ("folder", "verb", "handles"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_variant_decides_who_may_change_which_roles(
    make_site: MakeSite, sqlite_url: str, folder: str, verb: str, handles: dict[str, set[str]]
) -> None:
    """Every role tries to invite to, change from, or remove from every role: it may exactly where the table says."""
    site = make_site(sqlite_url, folder=ROOT / "policies" / folder)
    # The last role of each file may least.
    lowest = list(site.members)[-1]

    def attempt(client: Client, role: str) -> object:
        email = f"somebody{next(_numbers)}@acme.io"
        if verb == "invite":
            return client.invitations.create([(email, role)])
        user_id = add_member(site.storage, "acme", email, role).user_id
        return client.members.change_role(user_id, lowest) if verb == "update" else client.members.remove(user_id)

    found: dict[str, set[str]] = {}
    refusals = set()
    for caller, role in product(site.tokens, site.tokens):
        with Client(site.address, site.tokens[caller]) as client:
            try:
                attempt(client, role)
            except (PermissionMissing, RoleBeyondCaller) as error:
                refusals.add((caller, role, type(error)))
            else:
                found.setdefault(caller, set()).add(role)

    assert found == handles
    for caller, role, refusal in refusals:
        # A caller that may handle some roles gets ROLE_BEYOND_CALLER.
        assert refusal is (RoleBeyondCaller if caller in handles else PermissionMissing), (caller, role)


@pytest.mark.parametrize("folder", ["variants/owner-managed", "variants/viewer-editor-admin"])
@pytest.mark.parametrize("act", ["demote", "leave"])
def test_last_owner_stays_under_each_variant(make_site: MakeSite, sqlite_url: str, folder: str, act: str) -> None:
    """With any role as the owner role, its last member can't leave or be demoted; with a second member, one can."""
    site = make_site(sqlite_url, folder=Path(ROOT / "policies" / folder))
    top, *_, lowest = site.members
    acts: dict[str, Callable[[Client], object]] = {
        "demote": lambda client: client.members.change_role(site.members[top].user_id, lowest),
        "leave": lambda client: client.members.leave(),
    }
    with Client(site.address, site.tokens[top]) as client:
        with pytest.raises(LastOwner, match=f"Nobody else holds the role {top}"):
            acts[act](client)
        add_member(site.storage, "acme", "second@acme.io", top)

        acts[act](client)


def test_project_admin_says_who_works_in_the_project_and_nowhere_else(make_site: MakeSite, sqlite_url: str) -> None:
    """In `project-admins`, a member who is PROJECT_ADMIN at one project assigns the project's roles there only."""
    site = make_site(sqlite_url, folder=ROOT / "policies/variants/project-admins")
    bob, eve = (add_member(site.storage, "acme", f"{name}@acme.io", "MEMBER") for name in ("bob", "eve"))
    bobs = issue(site.storage, site.log, "acme", "bob@acme.io").text
    with Client(site.address, site.tokens["OWNER"]) as owner:
        owner.assignments.create([NewAssignment("bob@acme.io", "PROJECT_ADMIN", "projects/billing")])
    with Client(site.address, bobs) as client:
        client.assignments.create([NewAssignment("eve@acme.io", "PROJECT_EDITOR", "projects/billing/eu")])
        for scope in ("", "projects", "projects/other", "projects/billing2"):
            with pytest.raises(PermissionMissing):
                client.assignments.create([NewAssignment("eve@acme.io", "PROJECT_VIEWER", scope)])
        with pytest.raises(RoleBeyondCaller):
            client.assignments.create([NewAssignment("eve@acme.io", "ADMIN", "projects/billing")])
    with Client(site.address, site.tokens["ADMIN"]) as client:
        inside = client.check(eve.email, "update", "secrets/db", scope="projects/billing/eu")
        beside = client.check(eve.email, "update", "secrets/db", scope="projects/billing")
        of_admin = client.check(bob.email, "delete", "projects/billing")

    assert inside
    assert inside.role == "PROJECT_EDITOR"
    assert not beside
    assert of_admin


def test_break_glass_is_held_until_it_ends(make_site: MakeSite, sqlite_url: str) -> None:
    """In `break-glass`, an owner assigns production's secrets for a time, and an admin can't. It ends by itself."""
    site = make_site(sqlite_url, folder=ROOT / "policies/variants/break-glass")
    engineer = site.members["ENGINEER"].email
    glass = NewAssignment(engineer, "BREAK_GLASS", expires=timedelta(seconds=2), note="INC-42")
    with Client(site.address, site.tokens["ADMIN"]) as admin:
        with pytest.raises(RoleBeyondCaller):
            admin.assignments.create([glass])
        before = admin.check(engineer, "view", "secrets/prod/db")
    with Client(site.address, site.tokens["OWNER"]) as owner:
        assigned = owner.assignments.create([glass]).assignments[0]
        during = owner.check(engineer, "view", "secrets/prod/db")
        time.sleep(max(0.0, assigned.expire_time.ToMicroseconds() - now()) / 1_000_000)
        after = owner.check(engineer, "view", "secrets/prod/db")

    assert not before
    assert during
    assert during.assignment_id == assigned.id
    assert not after
    assert after.revision == during.revision
