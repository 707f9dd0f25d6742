"""The client library: typed calls with deadlines, lists without pages, the server's errors as exceptions.

with Client() as rolecall:  # ROLECALL_ADDRESS, ROLECALL_TOKEN, ROLECALL_ORGANIZATION
    if rolecall.check("ann@acme.io", "view", "secrets/billing"):
        ...
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rolecall.client import convert
from rolecall.client.assignments import AssignmentClient, NewAssignment, TeamClient
from rolecall.client.connection import MAX_PAGE_SIZE, ClientBase, connect, token_of_environment
from rolecall.client.management import AuditClient, OrganizationClient, SessionClient, TokenClient, audit_filter
from rolecall.client.messages import to_dict
from rolecall.client.people import InvitationClient, MemberClient
from rolecall.client.unauthenticated import UnauthenticatedClient
from rolecall.domain import CheckResult, Member, Permission, ResourcePlan, Role
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import policy_pb2
from rolecall.v1.authorization_pb2_grpc import AuthorizationServiceStub
from rolecall.v1.policy_pb2_grpc import PolicyServiceStub

# A policy of 100,000 rules takes several seconds.
VALIDATION_SECONDS = 30.0

__all__ = ["Client", "NewAssignment", "UnauthenticatedClient", "audit_filter", "to_dict"]


class Client(ClientBase):
    """A connection to a Rolecall server that presents a token. Threads may share it.

    `tokens`, `session`, `organization`, `members`, `invitations`, `assignments`, `teams` and `audit` manage what their
    names say, where the token's role permits it. `UnauthenticatedClient` is for callers who have no token yet.
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
        page_size: int = MAX_PAGE_SIZE,
    ) -> None:
        """Set up the client without connecting: the first call connects.

        An argument that is None or empty is read from ROLECALL_ADDRESS, ROLECALL_TOKEN or the file that
        ROLECALL_TOKEN_FILE names, ROLECALL_ORGANIZATION, or ROLECALL_CA_FILE. `address`: `host:port`, `host` (port 443
        with TLS, else 50051), or `unix:path`. `timeout`: seconds that one call may take, its retries included. The
        connection is in plain text to a Unix socket, and to a loopback address unless a CA file is given; it uses TLS
        to any other, unless ROLECALL_PLAINTEXT_EXPOSES_TOKENS=true; `plaintext` overrides this. `page_size`: entries
        fetched at once of a list, 1 to 1,000. Raises `ConfigError` if no token is given, or the address is malformed.
        """
        super().__init__(
            connect(
                address,
                token or token_of_environment(),
                organization,
                timeout=timeout,
                ca_file=ca_file,
                plaintext=plaintext,
                page_size=page_size,
            )
        )
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
        self.assignments = AssignmentClient(self._connection)
        self.teams = TeamClient(self._connection)

    def check(
        self,
        subject: str,
        action: str,
        resource: str,
        *,
        scope: str = "",
        context: Mapping[str, object] | None = None,
        resource_properties: Mapping[str, object] | None = None,
        action_properties: Mapping[str, object] | None = None,
        subject_properties: Mapping[str, object] | None = None,
        explain: bool = False,
        at_least_revision: int = 0,
    ) -> CheckResult:
        """Decide whether `subject` may do `action` on `resource`. The result is true only for ALLOW.

        `scope`: the container in which the resource stands, as `projects/billing`; roles that the subject is assigned
        there, or above, count too. `context` and the properties are what the conditions of rules are evaluated with, as
        in `{"ip": "192.0.2.7"}`: values of JSON, at most 65,536 bytes and 32 levels. `explain` asks for the rule that
        decided; without `authorization explain` only about oneself, and then for the roles that would pass;
        `at_least_revision` refuses an answer from an older revision of the organization. Raises `RolecallError`.
        """
        request = pb.CheckRequest(
            organization=self._organization,
            subject=subject,
            action=action,
            resource=resource,
            scope=scope,
            **convert.structs(context, resource_properties, action_properties, subject_properties),
            explain=explain,
            at_least_revision=at_least_revision,
        )
        return convert.result(self._connection.call(self._authorization.Check, request))

    def check_token(
        self,
        token: str,
        action: str,
        resource: str,
        *,
        scope: str = "",
        context: Mapping[str, object] | None = None,
        resource_properties: Mapping[str, object] | None = None,
        action_properties: Mapping[str, object] | None = None,
        subject_properties: Mapping[str, object] | None = None,
        subject_address: str = "",
        at_least_revision: int = 0,
    ) -> CheckResult:
        """Decide whether the holder of `token`, presented by a third party, may do `action` on `resource`.

        `subject_address`: the third party's IP address, needed for tokens that may be used from some networks only. A
        token that is not live is a DENY with the reason TOKEN_INVALID, not an error. `scope`, `context` and the
        properties as for `check`. Raises as `check`.
        """
        request = pb.CheckRequest(
            organization=self._organization,
            subject_token=token,
            subject_address=subject_address,
            action=action,
            resource=resource,
            scope=scope,
            **convert.structs(context, resource_properties, action_properties, subject_properties),
            at_least_revision=at_least_revision,
        )
        return convert.result(self._connection.call(self._authorization.Check, request))

    def batch_check(
        self,
        checks: Iterable[tuple[str, str, str] | tuple[str, str, str, str]],
        *,
        scope: str = "",
        context: Mapping[str, object] | None = None,
        resource_properties: Mapping[str, object] | None = None,
        action_properties: Mapping[str, object] | None = None,
        subject_properties: Mapping[str, object] | None = None,
        at_least_revision: int = 0,
    ) -> list[CheckResult]:
        """Decide 1 to 1,000 checks of (subject, action, resource), from one snapshot; the results keep their order.

        A check may have a scope of its own, as (subject, action, resource, scope); the others have `scope`, which is as
        for `check`. All have the same `context` and properties. A malformed check is a DENY with an `error`. Raises as
        `check`.
        """
        items = [_item(*check) for check in checks]
        request = pb.BatchCheckRequest(
            organization=self._organization,
            checks=items,
            scope=scope,
            **convert.structs(context, resource_properties, action_properties, subject_properties),
            at_least_revision=at_least_revision,
        )
        response = self._connection.call(self._authorization.BatchCheck, request)
        return [convert.batch_result(item, response) for item in response.results]

    def permissions(self, subject: str, *, scope: str = "", at_least_revision: int = 0) -> Iterator[Permission]:
        """List the rules that `subject` holds, fetched page by page. A deny overrides any allow. Raises as `check`.

        `scope` as for `check`. The rules of roles that are assigned elsewhere are listed for the resources at their
        scopes.
        """
        request = pb.ListPermissionsRequest(
            organization=self._organization,
            subject=subject,
            scope=scope,
            page_size=self._connection.page_size,
            at_least_revision=at_least_revision,
        )
        for page in self._connection.pages(self._authorization.ListPermissions, request):
            yield from (convert.permission(permission) for permission in page.permissions)

    def subjects(self, action: str, resource: str, *, scope: str = "", at_least_revision: int = 0) -> Iterator[Member]:
        """List the members who may do `action` on `resource`, by address, fetched page by page. Raises as `check`.

        `scope` as for `check`. Leaves out those who may only under conditions, see `conditional_subjects`. Their
        `organization` is the one that this client names, empty for the token's own.
        """
        for page in self._subjects(action, resource, scope, at_least_revision):
            yield from (convert.member(member, self._organization) for member in page.members)

    def conditional_subjects(
        self, action: str, resource: str, *, scope: str = "", at_least_revision: int = 0
    ) -> Iterator[tuple[Member, tuple[str, ...]]]:
        """List the members who may only under conditions, with the names of these. Otherwise as `subjects`."""
        for page in self._subjects(action, resource, scope, at_least_revision):
            for found in page.conditional_members:
                yield convert.member(found.member, self._organization), tuple(found.conditions)

    def _subjects(
        self, action: str, resource: str, scope: str, at_least_revision: int
    ) -> Iterator[pb.ListSubjectsResponse]:
        request = pb.ListSubjectsRequest(
            organization=self._organization,
            action=action,
            resource=resource,
            scope=scope,
            page_size=self._connection.page_size,
            at_least_revision=at_least_revision,
        )
        return self._connection.pages(self._authorization.ListSubjects, request)

    def resources(self, subject: str, action: str, resource_type: str, *, at_least_revision: int = 0) -> Iterator[str]:
        """List the resources beneath `resource_type` on which `subject` may do `action`, fetched page by page.

        Only those that rules of the policy and scopes of role assignments name: one that only your own database knows
        is not among them, see `plan_resources`. Raises as `check`.
        """
        request = pb.ListResourcesRequest(
            organization=self._organization,
            subject=subject,
            action=action,
            resource_type=resource_type,
            page_size=self._connection.page_size,
            at_least_revision=at_least_revision,
        )
        for page in self._connection.pages(self._authorization.ListResources, request):
            yield from page.resources

    def plan_resources(
        self, subject: str, action: str, resource_type: str, *, scope: str = "", at_least_revision: int = 0
    ) -> ResourcePlan:
        """Plan on which resources beneath `resource_type` a subject may do `action`. `scope` as for `check`.

        `rolecall.sqlalchemy.filter` filters a query by it. Raises `PlanSize`, and as `check`.
        """
        request = pb.PlanResourcesRequest(
            organization=self._organization,
            subject=subject,
            action=action,
            resource_type=resource_type,
            scope=scope,
            at_least_revision=at_least_revision,
        )
        return convert.plan(self._connection.call(self._authorization.PlanResources, request), resource_type)

    def plan_token_resources(
        self,
        token: str,
        action: str,
        resource_type: str,
        *,
        scope: str = "",
        subject_address: str = "",
        at_least_revision: int = 0,
    ) -> ResourcePlan:
        """Plan as `plan_resources`, for the holder of `token`, presented by a third party as for `check_token`."""
        request = pb.PlanResourcesRequest(
            organization=self._organization,
            subject_token=token,
            subject_address=subject_address,
            action=action,
            resource_type=resource_type,
            scope=scope,
            at_least_revision=at_least_revision,
        )
        return convert.plan(self._connection.call(self._authorization.PlanResources, request), resource_type)

    def policy(self) -> policy_pb2.GetPolicyResponse:
        """Return the policy that the server serves, and what differs from it. Raises as `check`."""
        return self._connection.call(
            self._policy.GetPolicy, policy_pb2.GetPolicyRequest(organization=self._organization)
        )

    def validate_policy(
        self, model: str, policy: str, tests: str, conditions: str = ""
    ) -> policy_pb2.ValidatePolicyResponse:
        """Ask whether the server would accept the texts of model.conf, policy.csv, policy_test.csv, conditions.yaml.

        Raises as `check`.
        """
        request = policy_pb2.ValidatePolicyRequest(
            organization=self._organization, model=model, policy=policy, tests=tests, conditions=conditions
        )
        return self._connection.call(self._policy.ValidatePolicy, request, at_least=VALIDATION_SECONDS)

    def roles(self) -> Iterator[Role]:
        """List the roles of the policy with their own rules, fetched page by page. Raises as `check`."""
        request = policy_pb2.ListRolesRequest(organization=self._organization, page_size=self._connection.page_size)
        for page in self._connection.pages(self._policy.ListRoles, request):
            for role in page.roles:
                permissions = tuple(convert.permission(permission) for permission in role.permissions)
                yield Role(role.name, tuple(role.parents), permissions, role.updates_owners)


def _item(subject: str, action: str, resource: str, scope: str = "") -> pb.BatchCheckItem:
    return pb.BatchCheckItem(subject=subject, action=action, resource=resource, scope=scope)
