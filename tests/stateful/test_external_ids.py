"""Histories of external ids that are set, cleared and reused, against a plain model; Check must agree with it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from rolecall import Client, UnauthenticatedClient
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Invitee, LinkKind, Member
from rolecall.errors import ExternalIdTaken, PermissionMissing
from rolecall.server import build_server
from rolecall.server.build import Server
from rolecall.services import operator_tokens, organizations
from rolecall.v1 import invitation_pb2, member_pb2
from support.environment import CI
from support.sites import QUICK_LIMITS, MakeSite, Site, without_rates

EXAMPLES = 60 if CI else 12
IDS = ("auth0|1", "auth0|2", "3")
# Few people and few ids, so that ids often go from one to another.
PEOPLE = 4
STEPS = ("set", "set", "set", "clear", "swap", "remove", "invite", "accept", "update", "delete")
HISTORIES = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, PEOPLE - 1), st.sampled_from(IDS)), min_size=4, max_size=16
)

Answer = TypeVar(
    "Answer",
    member_pb2.ChangeMemberExternalIdResponse,
    invitation_pb2.CreateInvitationsResponse,
    invitation_pb2.UpdateInvitationResponse,
)

_numbers = itertools.count()


@dataclass
class Invited:
    """Pending invitation: its id, role, external id and the generation of its secret."""

    id: str
    role: str
    external_id: str
    generation: int = 1


@dataclass
class History:
    """Organization with its owner's client, and what the model says: members, their external ids, and invitations."""

    site: Site
    owner: Client
    elsewhere: Client
    members: list[Member]
    external_ids: dict[str, str] = field(default_factory=dict)
    invited: list[Invited] = field(default_factory=list)
    clients: dict[str, Client] = field(default_factory=dict)
    revision: int = 0

    @property
    def taken(self) -> set[str]:
        """The external ids in use."""
        held = {*self.external_ids.values(), *(each.external_id for each in self.invited)}
        return held - {""}

    def set(self, number: int, external_id: str) -> None:
        """Set a member's external id; refused where another holds it."""
        member = self.members[number % len(self.members)]
        free = external_id not in self.taken or self.external_ids.get(member.user_id) == external_id
        if self.attempt(lambda: self.owner.members.change_external_id(member.user_id, external_id), possible=free):
            self.external_ids[member.user_id] = external_id

    def clear(self, number: int, _: str) -> None:
        """Clear a member's external id."""
        self.set(number, "")

    def swap(self, number: int, external_id: str) -> None:
        """Take the id from its holder, and give it to another member at once."""
        for user_id, held in list(self.external_ids.items()):
            if held == external_id:
                self.set([member.user_id for member in self.members].index(user_id), "")
        self.set(number, external_id)

    def remove(self, number: int, _: str) -> None:
        """Remove a member other than the owner."""
        if len(self.members) > 1:
            member = self.members.pop(1 + number % (len(self.members) - 1))
            self.revision = self.owner.members.remove(member.user_id).revision
            self.external_ids.pop(member.user_id, None)

    def invite(self, number: int, external_id: str) -> None:
        """Invite a person with an external id; refused where another holds it."""
        role = ("ADMIN", "VIEWER")[number % 2]
        person = Invitee(f"p{next(_numbers)}@x.io", role, "", external_id)
        free = external_id not in self.taken
        if answer := self.attempt(lambda: self.owner.invitations.create([person]), possible=free):
            self.invited.append(Invited(answer.invitations[0].id, role, external_id))

    def accept(self, number: int, _: str) -> None:
        """Accept an invitation: its external id becomes the new member's."""
        if self.invited:
            invited = self.invited.pop(number % len(self.invited))
            links = MailedSecrets(server_key.read(self.site.settings.key_file))
            secret = links.secret(LinkKind.INVITATION, invited.id, invited.generation)
            with UnauthenticatedClient(self.site.address) as nobody:
                answer = nobody.accept_invitation(secret)
            member = self.owner.members.get(answer.member.user_id)
            assert (member.external_id, member.role) == (invited.external_id, invited.role)
            self.members.append(member)
            self.external_ids[member.user_id] = invited.external_id
            self.revision = answer.revision

    def update(self, number: int, external_id: str) -> None:
        """Change an invitation's external id; refused where another holds it."""
        if self.invited:
            invited = self.invited[number % len(self.invited)]
            if invited.external_id == external_id:
                return
            call = lambda: self.owner.invitations.update(invited.id, external_id=external_id)  # noqa: E731
            if self.attempt(call, possible=external_id not in self.taken):
                invited.external_id = external_id
                invited.generation += 1

    def delete(self, number: int, _: str) -> None:
        """Delete an invitation, which frees its external id."""
        if self.invited:
            invited = self.invited.pop(number % len(self.invited))
            self.revision = self.owner.invitations.delete(invited.id).revision

    def attempt(self, call: Callable[[], Answer], *, possible: bool) -> Answer | None:
        """Make a change that must succeed or be EXTERNAL_ID_TAKEN; return the answer, None for a refusal."""
        try:
            answer = call()
        except ExternalIdTaken:
            assert not possible
            return None
        assert possible
        self.revision = answer.revision
        return answer

    def compare(self) -> None:
        """Ask about each external id in every way, here and on the other server, and compare with the model."""
        roles = {member.user_id: member.role for member in self.members}
        expected = dict.fromkeys((*IDS, "never"), "")
        expected |= {held: roles[user_id] for user_id, held in self.external_ids.items() if held}
        for external_id, role in expected.items():
            subject = f"user:{external_id}"
            asked = (subject, "view", "members")
            here = self.owner.check(*asked)
            there = self.elsewhere.check(*asked, at_least_revision=self.revision)

            assert (here.role, bool(here)) == (there.role, bool(there)) == (role, role != ""), external_id
            assert bool(list(self.owner.permissions(subject))) == (role != "")
        # By external id, by user id and by address in one batch, which is from one snapshot.
        batch = [(f"user:{external_id}", "view", "members") for external_id in expected]
        batch += [(f"user:{member.user_id}", "view", "members") for member in self.members]
        batch += [(member.email, "view", "members") for member in self.members]
        may = [role != "" for role in expected.values()] + [True] * 2 * len(self.members)
        assert [bool(result) for result in self.owner.batch_check(batch)] == may
        listed = {member.user_id: member.external_id for member in self.owner.subjects("view", "members")}
        assert listed == {user_id: self.external_ids.get(user_id, "") for user_id in roles}
        self.compare_own()

    def compare_own(self) -> None:
        """A viewer may ask about its own external id, and about no other."""
        viewer = next((member for member in self.members if member.user_id in self.clients), None)
        if viewer is None:
            return
        own = self.external_ids.get(viewer.user_id, "")
        for external_id in IDS:
            try:
                answered = bool(self.clients[viewer.user_id].check(f"user:{external_id}", "view", "members"))
            except PermissionMissing:
                answered = False
            assert answered == (external_id == own), external_id


@pytest.fixture
def servers(make_site: MakeSite, database_url: str) -> Iterator[tuple[Site, Server]]:
    """A site without rate limits, and another server on its database."""
    site = make_site(database_url, limits=without_rates(QUICK_LIMITS))
    other = build_server(site.settings, limits=without_rates(QUICK_LIMITS))
    other.start()
    yield site, other
    other.stop(0)


def test_checks_by_external_id_agree_with_the_model(servers: tuple[Site, Server]) -> None:
    """After each step of random histories, both servers answer as the model does, and refuse what it refuses."""
    site, other = servers
    policy = site.server.live.in_force.policy

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(HISTORIES)
    def follow(steps: list[tuple[str, int, str]]) -> None:
        name = f"org-{next(_numbers)}"
        made = organizations.create(site.storage, site.log, policy, name, "ann@acme.io", demo=True)
        people = [made.owner, *(each for each in made.others if each.role in ("ADMIN", "VIEWER"))]
        for extra in made.others:
            assert extra.external_id == ""
        (viewer,) = (member for member in people if member.role == "VIEWER")
        viewers_token = operator_tokens.issue(site.storage, site.log, name, viewer.email).text
        with (
            Client(site.address, made.token.text) as owner,
            Client(other.address, made.token.text) as elsewhere,
            Client(site.address, viewers_token) as own,
        ):
            for left_out in made.others:
                if left_out not in people:
                    owner.members.remove(left_out.user_id)
            history = History(site, owner, elsewhere, people, clients={viewer.user_id: own})
            history.compare()
            for what, number, external_id in steps:
                note(f"{what} {number} {external_id}")
                getattr(history, what)(number, external_id)
                history.compare()

    follow()
