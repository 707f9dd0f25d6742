"""The client library: typed calls with deadlines, lists without pages, errors as the server meant them.

with Client() as rolecall:  # ROLECALL_ADDRESS, ROLECALL_TOKEN, ROLECALL_ORGANIZATION
    if rolecall.check("ann@acme.io", "view", "secrets/billing"):
        ...
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rolecall.client import convert
from rolecall.client.connection import PAGE_SIZE, Connected, connect
from rolecall.client.guest import Guest
from rolecall.client.management import (
    AuditClient,
    OrganizationClient,
    SessionClient,
    TokenClient,
    audit_filter,
)
from rolecall.client.people import InvitationClient, MemberClient
from rolecall.client.plain import plain
from rolecall.config import PREFIX
from rolecall.domain import CheckResult, Member, Permission, Role
from rolecall.errors import ConfigError
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import policy_pb2
from rolecall.v1.authorization_pb2_grpc import AuthorizationServiceStub
from rolecall.v1.policy_pb2_grpc import PolicyServiceStub

__all__ = ["Client", "Guest", "audit_filter", "plain"]


class Client(Connected):
    """A connection to a Rolecall server. Threads may share it.

    `tokens`, `session`, `organization`, `members`, `invitations` and `audit` manage what their names say, for whoever
    may. Whoever has no token yet is a `Guest`.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        organization: str | None = None,
        *,
        timeout: float = 5.0,
        ca_file: Path | str | None = None,
        plaintext: bool | None = None,
    ) -> None:
        """What is None comes from ROLECALL_ADDRESS, _TOKEN, _ORGANIZATION, _CA_FILE; no call connects before its time.

        `timeout`: seconds that one call may take, its retries included. A loopback address is spoken to in plain text,
        unless `ca_file` says otherwise; any other with TLS, unless `plaintext` (ROLECALL_PLAINTEXT_EXPOSES_TOKENS=true)
        says otherwise. Raises `ConfigError` where there is no token, or the address is none.
        """
        token = token or os.environ.get(f"{PREFIX}TOKEN", "")
        if not token:
            raise ConfigError("There is no token to present: set ROLECALL_TOKEN to one.")
        super().__init__(connect(address, token, organization, timeout=timeout, ca_file=ca_file, plaintext=plaintext))
        self._organization = self._connection.organization
        channel = self._connection.channel
        self._authorization = AuthorizationServiceStub(channel)
        self._policy = PolicyServiceStub(channel)
        self.tokens = TokenClient(self._connection)
        self.session = SessionClient(self._connection)
        self.organization = OrganizationClient(self._connection)
        self.audit = AuditClient(self._connection)
        self.members = MemberClient(self._connection)
        self.invitations = InvitationClient(self._connection)

    def check(
        self, subject: str, action: str, resource: str, *, explain: bool = False, at_least_revision: int = 0
    ) -> CheckResult:
        """May `subject` do `action` on `resource`? The result is true only for ALLOW. Raises `RolecallError`."""
        request = pb.CheckRequest(
            organization=self._organization,
            subject=subject,
            action=action,
            resource=resource,
            explain=explain,
            at_least_revision=at_least_revision,
        )
        return convert.result(self._connection.call(self._authorization.Check, request))

    def check_token(self, token: str, action: str, resource: str, *, at_least_revision: int = 0) -> CheckResult:
        """May the holder of `token`, which somebody presented, do `action` on `resource`? Raises as `check`."""
        request = pb.CheckRequest(
            organization=self._organization,
            subject_token=token,
            action=action,
            resource=resource,
            at_least_revision=at_least_revision,
        )
        return convert.result(self._connection.call(self._authorization.Check, request))

    def batch_check(
        self, questions: Iterable[tuple[str, str, str]], *, at_least_revision: int = 0
    ) -> list[CheckResult]:
        """The answers to 1 to 1,000 (subject, action, resource), in order, from one snapshot. Raises as `check`.

        A malformed question is a DENY with an `error`.
        """
        items = [pb.BatchCheckItem(subject=subject, action=action, resource=r) for subject, action, r in questions]
        request = pb.BatchCheckRequest(
            organization=self._organization, checks=items, at_least_revision=at_least_revision
        )
        response = self._connection.call(self._authorization.BatchCheck, request)
        return [convert.batch_result(item, response) for item in response.results]

    def permissions(self, subject: str, *, at_least_revision: int = 0) -> Iterator[Permission]:
        """The rules that `subject` holds, page by page. A deny among them beats any allow. Raises as `check`."""
        request = pb.ListPermissionsRequest(
            organization=self._organization,
            subject=subject,
            page_size=PAGE_SIZE,
            at_least_revision=at_least_revision,
        )
        for page in self._connection.pages(self._authorization.ListPermissions, request):
            yield from (convert.permission(permission) for permission in page.permissions)

    def subjects(self, action: str, resource: str, *, at_least_revision: int = 0) -> Iterator[Member]:
        """The members who may do `action` on `resource`, page by page, by address. Raises as `check`.

        Their `organization` is the one that this client names, empty for the token's own.
        """
        request = pb.ListSubjectsRequest(
            organization=self._organization,
            action=action,
            resource=resource,
            page_size=PAGE_SIZE,
            at_least_revision=at_least_revision,
        )
        for page in self._connection.pages(self._authorization.ListSubjects, request):
            yield from (convert.member(member, self._organization) for member in page.members)

    def policy(self) -> policy_pb2.GetPolicyResponse:
        """The policy in force, and why a later one was refused. Raises as `check`."""
        return self._connection.call(
            self._policy.GetPolicy, policy_pb2.GetPolicyRequest(organization=self._organization)
        )

    def roles(self) -> Iterator[Role]:
        """The roles of the policy with their own rules, fetched page by page. Raises as `check`."""
        request = policy_pb2.ListRolesRequest(organization=self._organization, page_size=PAGE_SIZE)
        for page in self._connection.pages(self._policy.ListRoles, request):
            for role in page.roles:
                permissions = tuple(convert.permission(permission) for permission in role.permissions)
                yield Role(role.name, tuple(role.parents), permissions, role.updates_owners)
