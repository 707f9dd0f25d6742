"""May this caller ask, and what is the answer? Every decision of the service goes through here."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rolecall.directory import Directory, Standing, Standings
from rolecall.domain import Caller, CheckResult, Explanation, Member, Page, Permission, Question, Reason, Role, Subject
from rolecall.domain import SubjectKind as Kind
from rolecall.errors import RevisionNotReached
from rolecall.live_policy import LivePolicy
from rolecall.pages import Pages
from rolecall.policy import Policy, explain, narrowed, permits
from rolecall.rights import may, require
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows

__all__ = ["Authorizer", "BatchAnswer", "PermissionsAnswer", "RolesAnswer", "SubjectsAnswer"]


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One reason a question, in order, all from one snapshot."""

    reasons: list[Reason]
    revision: int
    policy_version: str


@dataclass(frozen=True, slots=True)
class PermissionsAnswer:
    """A page of what a subject may do. `role` is empty where the subject has none."""

    role: str
    permissions: tuple[Permission, ...]
    revision: int
    policy_version: str
    next_page_token: str


@dataclass(frozen=True, slots=True)
class SubjectsAnswer:
    """A page of the members who may."""

    members: tuple[Member, ...]
    revision: int
    policy_version: str
    next_page_token: str


@dataclass(frozen=True, slots=True)
class RolesAnswer:
    """A page of the policy's roles."""

    roles: tuple[Role, ...]
    policy_version: str
    next_page_token: str


class Authorizer:
    """Decides with the policy in force and the members of the moment."""

    def __init__(self, storage: Storage, directory: Directory, live: LivePolicy, pages: Pages) -> None:
        self._storage = storage
        self._directory = directory
        self._live = live
        self._pages = pages

    def require(self, caller: Caller, action: str, resource: str) -> None:
        """Raise `PermissionMissing` unless the caller itself may do `action` on `resource`."""
        require(self._live.in_force.policy, caller, action, resource)

    def check(
        self, caller: Caller, question: Question, *, at_least_revision: int = 0, explained: bool = False
    ) -> CheckResult:
        """The answer to one question. Raises `PermissionMissing`, `RevisionNotReached`, `StorageUnavailable`."""
        policy = self._live.in_force.policy
        subject = question.subject
        _require_asking(policy, caller, (subject,))
        if explained:
            require(policy, caller, "explain", "authorization")
        revision, standing = self._standing(caller, subject, at_least_revision)
        reason = _reason(policy, standing, question)
        told = (reason, _role_of(subject, standing), revision, policy.version, None, None)
        # The class's own way takes twice as long.
        result = tuple.__new__(CheckResult, told)
        return result._replace(explanation=_explain(policy, question, result)) if explained else result

    def batch_check(self, caller: Caller, questions: Sequence[Question], *, at_least_revision: int = 0) -> BatchAnswer:
        """The answers to many questions, from one snapshot of members and policy. Raises as `check`."""
        subjects = [question.subject for question in questions]
        policy = self._live.in_force.policy
        _require_asking(policy, caller, subjects)
        standings = self._directory.standings(caller.organization, subjects, caller.actor, at_least_revision)
        _require_revision(standings.revision, at_least_revision)
        return BatchAnswer(_decide(policy, standings, questions), standings.revision, policy.version)

    def list_permissions(
        self, caller: Caller, subject: Subject, page: Page, *, at_least_revision: int = 0
    ) -> PermissionsAnswer:
        """What `subject` may do. Raises `PermissionMissing`, `InvalidField`, `PageToken`, and as `check`."""
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        _require_asking(policy, caller, [subject])
        revision, standing = self._standing(caller, subject, at_least_revision)
        role = _role_of(subject, standing)
        scope = ("ListPermissions", caller.organization, subject.kind.name, subject.value, role, policy.version)
        position = self._pages.position(scope, page)
        start = int(position[0]) if position else 0
        permissions = narrowed(policy.permissions_of(role), standing.restriction if standing else None)
        end = start + size
        token = self._pages.token(scope, [str(end)]) if end < len(permissions) else ""
        return PermissionsAnswer(role, tuple(permissions[start:end]), revision, policy.version, token)

    def list_subjects(
        self, caller: Caller, action: str, resource: str, page: Page, *, at_least_revision: int = 0
    ) -> SubjectsAnswer:
        """The members who may do `action` on `resource`, by address. Raises as `list_permissions`."""
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "check", "authorization")
        require(policy, caller, "view", "members")
        scope = ("ListSubjects", caller.organization, action, resource, policy.version)
        position = self._pages.position(scope, page)
        roles = policy.roles_that_may(action, resource)

        def work(tx: Transaction) -> tuple[int, list[tuple[str, Member]]]:
            revision = organization_rows.revision_of(tx, caller.organization)
            after = position[0] if position else None
            return revision, member_rows.page_with_roles(tx, caller.organization, roles, after, size + 1)

        revision, found = self._storage.read(work)
        _require_revision(revision, at_least_revision)
        token = self._pages.token(scope, [found[size - 1][0]]) if len(found) > size else ""
        return SubjectsAnswer(tuple(member for _, member in found[:size]), revision, policy.version, token)

    def list_roles(self, caller: Caller, page: Page) -> RolesAnswer:
        """The roles of the policy, in file order. Raises `PermissionMissing`, `InvalidField`, `PageToken`."""
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "view", "policy")
        scope = ("ListRoles", caller.organization, policy.version)
        position = self._pages.position(scope, page)
        start = int(position[0]) if position else 0
        roles = policy.describe_roles()
        token = self._pages.token(scope, [str(start + size)]) if start + size < len(roles) else ""
        return RolesAnswer(tuple(roles[start : start + size]), policy.version, token)

    def _standing(self, caller: Caller, subject: Subject, at_least_revision: int) -> tuple[int, Standing | None]:
        standing = self._directory.standing(caller.organization, subject, caller.actor, at_least_revision)
        _require_revision(standing[0], at_least_revision)
        return standing


def _role_of(subject: Subject, standing: Standing | None) -> str:
    """The role that the subject acts with; empty where it has none."""
    if standing is None:
        return subject.value if subject.kind is Kind.ROLE else ""
    return standing.role


def _require_asking(policy: Policy, caller: Caller, subjects: Collection[Subject]) -> None:
    """Anybody may ask about themselves; about others only who may `authorization check`."""
    if not may(policy, caller, "check", "authorization") and not all(_is_self(caller, each) for each in subjects):
        # It says what is missing.
        require(policy, caller, "check", "authorization")


def _is_self(caller: Caller, subject: Subject) -> bool:
    """Whether the subject is the caller, told without looking anything up."""
    match subject.kind:
        case Kind.USER_ID:
            return subject.value == caller.user_id != ""
        case Kind.EMAIL:
            return subject.value == caller.email_key != ""
        case Kind.TOKEN_ID | Kind.PRESENTED:
            return subject.value == caller.credential_id
        case Kind.ROLE:
            return False


def _require_revision(revision: int, at_least: int) -> None:
    if revision < at_least:
        raise RevisionNotReached(
            f"The organization is at revision {revision}, and {at_least} was asked for:"
            " use a revision that an answer of this organization gave, and try again.",
            revision=str(revision),
            at_least_revision=str(at_least),
        )


def _decide(policy: Policy, standings: Standings, questions: Iterable[Question]) -> list[Reason]:
    """A reason a question. This is where a batch takes its time."""
    reason_of = policy.reason
    reasons: list[Reason] = []
    for question, standing in zip(questions, standings.each, strict=True):
        if standing is not None and standing.restriction is None:
            _, action, resource = question
            reasons.append(reason_of(standing.role, action, resource))
        else:
            reasons.append(_reason(policy, standing, question))
    return reasons


def _reason(policy: Policy, standing: Standing | None, question: Question) -> Reason:
    """Why the subject, who stands there, may or may not."""
    subject, action, resource = question
    if standing is None:
        if subject.kind is Kind.ROLE:
            return policy.reason(subject.value, action, resource)
        return Reason.TOKEN_INVALID if subject.kind in (Kind.TOKEN_ID, Kind.PRESENTED) else Reason.NOT_A_MEMBER
    reason = policy.reason(standing.role, action, resource)
    if standing.restriction is None or reason is not Reason.GRANTED:
        return reason
    return reason if permits(standing.restriction, action, resource) else Reason.TOKEN_SCOPE


def _explain(policy: Policy, question: Question, result: CheckResult) -> Explanation:
    if result.reason is Reason.NOT_A_MEMBER:
        passing = policy.roles_that_may(question.action, question.resource)
        return Explanation(
            "The subject is no member of the organization: check its spelling.",
            roles_that_pass=passing,
        )
    if result.reason is Reason.TOKEN_INVALID:
        return Explanation("The organization has no such live token: it may be mistyped, expired or deleted.")
    if result.reason is Reason.TOKEN_SCOPE:
        return Explanation(
            f"{result.role} may `{question.action}` on `{question.resource}`, but the token is restricted to less:"
            " use one whose restriction covers it."
        )
    return explain(policy.decide(result.role, question.action, question.resource))
