"""Authorization decisions: whether the caller may ask, and the answer. Every Check is decided in this module."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rolecall.domain import (
    NEVER,
    NOTHING_ASSIGNED,
    ORGANIZATION,
    Caller,
    CheckResult,
    Explanation,
    Member,
    Page,
    Permission,
    PlanKind,
    Principal,
    PrincipalKind,
    Question,
    Reason,
    ResourcePlan,
    Role,
    RoleExplanation,
    Subject,
    now,
    rfc3339,
)
from rolecall.domain import SubjectKind as Kind
from rolecall.errors import PlanSize, RevisionNotReached
from rolecall.identity.batch_loader import Miss
from rolecall.identity.directory import Directory, ResolvedSubject, ResolvedSubjects, SubjectCache
from rolecall.policy import (
    Conditional,
    Evaluate,
    Policy,
    RoleReasons,
    Values,
    explain,
    explain_without_rules,
    permissions_at,
    permits,
    plan_resources,
)
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import is_self, may, require, roles_that_may
from rolecall.services.conditions import ROLE, TOKEN, USER, Memo, QuestionValues, evaluator
from rolecall.services.pagination import Pagination
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows

__all__ = [
    "Authorizer",
    "BatchAnswer",
    "CachedAuthorizer",
    "PermissionsAnswer",
    "ResourcesAnswer",
    "RolesAnswer",
    "SubjectsAnswer",
]

# Maximum patterns of a plan: SQLite limits the depth of an expression to 1,000.
MAX_PLAN_PATTERNS = 500
# Maximum roles of a subject in an explanation.
MAX_EXPLAINED_ROLES = 100
# Scopes that are read at once for a list of resources.
SCOPES_READ = 1000


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """Reasons in the order of the questions, all from one snapshot."""

    reasons: list[Reason]
    revision: int
    policy_version: str


@dataclass(frozen=True, slots=True)
class PermissionsAnswer:
    """Page of a subject's permissions. `role` is the one that it has everywhere; empty if it has none."""

    role: str
    permissions: tuple[Permission, ...]
    revision: int
    policy_version: str
    next_page_token: str


@dataclass(frozen=True, slots=True)
class SubjectsAnswer:
    """Page of the members who may do what was asked, and of those who may only under conditions, with these."""

    members: tuple[Member, ...]
    conditional: tuple[tuple[Member, tuple[str, ...]], ...]
    revision: int
    policy_version: str
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ResourcesAnswer:
    """Page of the resources on which a subject may do what was asked."""

    resources: tuple[str, ...]
    revision: int
    policy_version: str
    next_page_token: str


@dataclass(frozen=True, slots=True)
class RolesAnswer:
    """Page of the policy's roles."""

    roles: tuple[Role, ...]
    policy_version: str
    next_page_token: str


class CachedAuthorizer:
    """Decides with the policy in force and the cached members. Has no storage, so it never blocks."""

    def __init__(self, subjects: SubjectCache, live: LivePolicy) -> None:
        self._subjects = subjects
        self._live = live

    def check(
        self, caller: Caller, question: Question, *, at_least_revision: int = 0, explained: bool = False
    ) -> CheckResult | None:
        """The answer to one question; None on a cache miss. Raises `PermissionMissing`, `Stale`.

        `explained`: about the caller itself, who gets no rules unless it may `authorization explain`; about others only
        for one that may.
        """
        policy = self._live.in_force.policy
        subject = question.subject
        _require_check_permission(policy, caller, (subject,))
        if explained and not is_self(caller, subject):
            require(policy, caller, "explain", "authorization")
        if subject.key:
            cached = self._subjects.resolve_one(caller.organization, subject, at_least_revision)
        else:
            several = self._subjects.resolve(caller.organization, (subject,), at_least_revision)
            cached = (several.revision, None) if several else None
        if cached is None:
            return None
        revision, resolved = cached
        result = _result(policy, question, revision, resolved)
        return _explained(policy, caller, question, result, resolved) if explained else result

    def batch_check(
        self, caller: Caller, questions: Sequence[Question], *, at_least_revision: int = 0
    ) -> BatchAnswer | None:
        """The answers to many questions, from one snapshot; None on a cache miss. Raises as `check`."""
        policy = self._live.in_force.policy
        subjects = [question.subject for question in questions]
        _require_check_permission(policy, caller, subjects)
        resolved = self._subjects.resolve(caller.organization, subjects, at_least_revision)
        return None if resolved is None else _batch_answer(policy, questions, resolved)


class Authorizer:
    """Decides with the policy in force and the present members, and queries the database on a cache miss."""

    def __init__(self, storage: Storage, directory: Directory, live: LivePolicy, pages: Pagination) -> None:
        self._storage = storage
        self._directory = directory
        self._live = live
        self._pages = pages
        self._cached = CachedAuthorizer(directory.cache, live)

    @property
    def has_conditions(self) -> bool:
        """Whether the policy in force has conditions, so that what a question gives for them matters."""
        return bool(self._live.in_force.policy.conditions)

    def check_cached(
        self, caller: Caller, question: Question, *, at_least_revision: int = 0, explained: bool = False
    ) -> CheckResult | Miss[CheckResult]:
        """The answer to one question, or a miss. Raises `PermissionMissing`, `Stale`.

        The miss raises `RateLimited`, `OrganizationNotFound`, `RevisionNotReached`, `StorageUnavailable`.
        """
        result = self._cached.check(caller, question, at_least_revision=at_least_revision, explained=explained)
        if result is not None:
            return result

        def finish(loaded: ResolvedSubjects) -> CheckResult:
            _require_revision(loaded.revision, at_least_revision)
            policy = self._live.in_force.policy
            resolved = loaded.subjects[0]
            answer = _result(policy, question, loaded.revision, resolved)
            return _explained(policy, caller, question, answer, resolved) if explained else answer

        return self._directory.miss(caller.organization, (question.subject,), caller.actor).then(finish)

    def batch_check_cached(
        self, caller: Caller, questions: Sequence[Question], *, at_least_revision: int = 0
    ) -> BatchAnswer | Miss[BatchAnswer]:
        """The answers to many questions, from one snapshot, or a miss. Raises as `check_cached`."""
        answer = self._cached.batch_check(caller, questions, at_least_revision=at_least_revision)
        if answer is not None:
            return answer

        def finish(loaded: ResolvedSubjects) -> BatchAnswer:
            _require_revision(loaded.revision, at_least_revision)
            return _batch_answer(self._live.in_force.policy, questions, loaded)

        subjects = [question.subject for question in questions]
        return self._directory.miss(caller.organization, subjects, caller.actor).then(finish)

    def list_permissions(
        self,
        caller: Caller,
        subject: Subject,
        page: Page,
        *,
        scope: str = ORGANIZATION,
        at_least_revision: int = 0,
    ) -> PermissionsAnswer:
        """List a subject's permissions for questions in `scope`.

        Raises `InvalidField`, `PageToken`, and what `check_cached` and its miss do.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        _require_check_permission(policy, caller, [subject])
        revision, resolved = self._resolve(caller, subject, at_least_revision)
        role = _role_of(subject, resolved)
        permissions = _permissions(policy, subject, resolved, scope)
        names = (subject.kind.name, subject.value, role, scope, policy.version)
        listed = ("ListPermissions", caller.organization, *names, _digest(permissions))
        position = self._pages.position(listed, page)
        start = int(position[0]) if position else 0
        end = start + size
        token = self._pages.token(listed, [str(end)]) if end < len(permissions) else ""
        return PermissionsAnswer(role, tuple(permissions[start:end]), revision, policy.version, token)

    def plan_resources(
        self,
        caller: Caller,
        subject: Subject,
        action: str,
        resource_type: str,
        *,
        scope: str = ORGANIZATION,
        at_least_revision: int = 0,
    ) -> ResourcePlan:
        """Plan on which resources of a type, in `scope`, a subject may do `action`.

        Raises `PlanSize`, and as `list_permissions`.
        """
        policy = self._live.in_force.policy
        _require_check_permission(policy, caller, [subject])
        revision, resolved = self._resolve(caller, subject, at_least_revision)
        role = _role_of(subject, resolved)
        permissions = _permissions(policy, subject, resolved, scope)
        include, exclude, conditional = plan_resources(permissions, action, resource_type)
        size = len(include) + len(exclude)
        if size > MAX_PLAN_PATTERNS:
            raise PlanSize(
                f"The plan would have {size} patterns, more than {MAX_PLAN_PATTERNS}: ask by BatchCheck, or have the"
                " policy say it by fewer rules.",
                subject=f"organization:{caller.organization}",
                size=str(size),
                maximum=str(MAX_PLAN_PATTERNS),
            )
        if not include:
            kind = PlanKind.NEVER
        elif include == (f"{resource_type}/*",) and not exclude:
            kind, include = PlanKind.ALWAYS, ()
        else:
            kind = PlanKind.CONDITIONAL
        return ResourcePlan(kind, resource_type, include, exclude, role, revision, policy.version, conditional)

    def list_resources(
        self,
        caller: Caller,
        subject: Subject,
        action: str,
        resource_type: str,
        page: Page,
        *,
        at_least_revision: int = 0,
    ) -> ResourcesAnswer:
        """List the resources of a type, of those that rules and scopes of assignments name, on which a subject may.

        Raises as `list_permissions`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        _require_check_permission(policy, caller, [subject])
        listed = ("ListResources", caller.organization, subject.kind.name, subject.value, action, resource_type)
        position = self._pages.position((*listed, policy.version), page)
        after = position[0] if position else ""
        revision, resolved = self._resolve(caller, subject, at_least_revision)
        ruled = sorted(path for path in policy.resources_of(resource_type) if path > after)

        def work(tx: Transaction) -> list[str]:
            found: list[str] = []
            last, more = after, True
            while more and len(found) <= size:
                scopes = assignment_rows.scopes(tx, caller.organization, resource_type, last, SCOPES_READ)
                more = len(scopes) == SCOPES_READ
                # Rules beyond the last scope that was read are merged with the next ones.
                named = {*scopes, *(path for path in ruled if path > last and not (more and path > scopes[-1]))}
                last = scopes[-1] if more else last
                questions = [Question(subject, action, path) for path in sorted(named)]
                reasons = _reasons(policy, ResolvedSubjects(revision, [resolved] * len(questions)), questions)
                pairs = zip(questions, reasons, strict=True)
                found += [question.resource for question, reason in pairs if reason is Reason.GRANTED]
            return found

        found = self._storage.read(work)
        token = self._pages.token((*listed, policy.version), [found[size - 1]]) if len(found) > size else ""
        return ResourcesAnswer(tuple(found[:size]), revision, policy.version, token)

    def list_subjects(
        self,
        caller: Caller,
        action: str,
        resource: str,
        page: Page,
        *,
        scope: str = ORGANIZATION,
        at_least_revision: int = 0,
    ) -> SubjectsAnswer:
        """List the members who may do `action` on `resource` in `scope`, by address, perhaps under conditions.

        Raises as `list_permissions`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "check", "authorization")
        require(policy, caller, "view", "members")
        listed = ("ListSubjects", caller.organization, action, resource, scope, policy.version)
        position = self._pages.position(listed, page)
        roles = roles_that_may(policy, action, resource, scope, conditional=True)

        def work(tx: Transaction) -> tuple[int, list[tuple[str, Member]], dict[str, tuple[str, ...]]]:
            revision = organization_rows.revision_of(tx, caller.organization)
            after = position[0] if position else None
            found = member_rows.page_with_roles(tx, caller.organization, roles, after, size + 1)
            needed = _conditions_of(tx, policy, [member for _, member in found[:size]], action, resource, scope)
            return revision, found, needed

        revision, found, needed = self._storage.read(work)
        _require_revision(revision, at_least_revision)
        token = self._pages.token(listed, [found[size - 1][0]]) if len(found) > size else ""
        members = [member for _, member in found[:size]]
        conditional = tuple((member, needed[member.user_id]) for member in members if member.user_id in needed)
        always = tuple(member for member in members if member.user_id not in needed)
        return SubjectsAnswer(always, conditional, revision, policy.version, token)

    def list_roles(self, caller: Caller, page: Page) -> RolesAnswer:
        """List the roles of the policy, in file order. Raises `PermissionMissing`, `InvalidField`, `PageToken`."""
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "view", "policy")
        scope = ("ListRoles", caller.organization, policy.version)
        position = self._pages.position(scope, page)
        start = int(position[0]) if position else 0
        roles = policy.describe_roles()
        token = self._pages.token(scope, [str(start + size)]) if start + size < len(roles) else ""
        return RolesAnswer(tuple(roles[start : start + size]), policy.version, token)

    def _resolve(self, caller: Caller, subject: Subject, at_least_revision: int) -> tuple[int, ResolvedSubject | None]:
        resolved = self._directory.resolve(caller.organization, (subject,), caller.actor, at_least_revision)
        _require_revision(resolved.revision, at_least_revision)
        return resolved.revision, resolved.subjects[0]


def _result(policy: Policy, question: Question, revision: int, resolved: ResolvedSubject | None) -> CheckResult:
    reason, role, assignment_id = _decide(policy, resolved, question, now())
    values = (reason, role, revision, policy.version, None, None, assignment_id)
    # The class's own constructor takes twice as long.
    return tuple.__new__(CheckResult, values)


def _batch_answer(policy: Policy, questions: Sequence[Question], resolved: ResolvedSubjects) -> BatchAnswer:
    return BatchAnswer(_reasons(policy, resolved, questions), resolved.revision, policy.version)


def _role_of(subject: Subject, resolved: ResolvedSubject | None) -> str:
    """Return the role that the subject acts with; empty if it has none."""
    if resolved is None:
        return subject.value if subject.kind is Kind.ROLE else ""
    return resolved.role


def _require_check_permission(policy: Policy, caller: Caller, subjects: Collection[Subject]) -> None:
    """Raise `PermissionMissing` unless each subject is the caller itself, or the caller may `authorization check`."""
    if not may(policy, caller, "check", "authorization") and not all(is_self(caller, each) for each in subjects):
        # For the error, which names the missing permission.
        require(policy, caller, "check", "authorization")


def _require_revision(revision: int, at_least: int) -> None:
    if revision < at_least:
        raise RevisionNotReached(
            f"The organization is at revision {revision}, before the at_least_revision {at_least}:"
            " send a revision from an answer of this organization, and try again.",
            revision=str(revision),
            at_least_revision=str(at_least),
        )


def _permissions(policy: Policy, subject: Subject, resolved: ResolvedSubject | None, scope: str) -> list[Permission]:
    """Return what a subject may and may not for questions in `scope`."""
    if resolved is None:
        return permissions_at(policy, _role_of(subject, None), NOTHING_ASSIGNED, None, scope)
    return permissions_at(policy, resolved.role, resolved.assigned.at(now()), resolved.restriction, scope)


def _conditions_of(
    tx: Transaction, policy: Policy, members: Sequence[Member], action: str, resource: str, scope: str
) -> dict[str, tuple[str, ...]]:
    """Return the conditions under which alone each of the members may, by user id; none for one who always may."""
    if not policy.conditions or not members:
        return {}
    principals = {member.user_id: Principal(PrincipalKind.USER, member.user_id) for member in members}
    assigned = assignment_rows.assigned(tx, members[0].organization, principals.values())
    at = now()
    found: dict[str, tuple[str, ...]] = {}
    for member in members:
        names = assigned[principals[member.user_id]].applicable(scope, resource, at).names
        reason, _ = policy.reason_of_roles((member.role, *names), action, resource)
        if isinstance(reason, RoleReasons) and (conditions_ := reason.conditions):
            found[member.user_id] = conditions_
    return found


def _digest(permissions: Iterable[Permission]) -> str:
    return hashlib.sha256(repr(permissions).encode()).hexdigest()


def _reasons(policy: Policy, resolved: ResolvedSubjects, questions: Sequence[Question]) -> list[Reason]:
    """Return the reason for each question. Equals `_decide`, inlined because batches spend most of their time here."""
    reason_of, reason_of_roles, at = policy.reason, policy.reason_of_roles, now()
    memo: Memo = {}
    has_conditions = bool(policy.conditions)
    reasons: list[Reason] = []
    for question, subject in zip(questions, resolved.subjects, strict=True):
        if subject is not None and subject.is_plain:
            reason = reason_of(subject.role, question[1], question[2])
            if has_conditions and isinstance(reason, Conditional):
                reason = _decide(policy, subject, question, at, memo)[0]
            reasons.append(reason)  # type: ignore[arg-type]  # without conditions no reason is one
        elif subject is not None and subject.restriction is None:
            _, action, resource, scope, _ = question
            applicable = subject.assigned.applicable(scope, resource, at)
            decided, _ = reason_of_roles((subject.role, *applicable.names), action, resource)
            if isinstance(decided, RoleReasons):
                decided = _decide(policy, subject, question, at, memo)[0]
            reasons.append(decided)
        else:
            reasons.append(_decide(policy, subject, question, at, memo)[0])
    return reasons


def _decide(
    policy: Policy, resolved: ResolvedSubject | None, question: Question, at: int, memo: Memo | None = None
) -> tuple[Reason, str, str]:
    """Decide one question at the time `at`, whose subject is resolved, or unknown in the organization.

    `memo`: what conditions were worth for other questions at that time.
    Returns the reason, the role that decided, and the id of the assignment by which the subject has it, if any.
    """
    subject, action, resource, scope, _ = question
    if resolved is None:
        if subject.kind is Kind.ROLE:
            reason = policy.reason(subject.value, action, resource)
            if isinstance(reason, Conditional):
                reason = reason.reason(_evaluator(policy, question, None, (subject.value,), at, memo))
            return reason, subject.value, ""
        is_token = subject.kind in (Kind.TOKEN_ID, Kind.PRESENTED)
        return Reason.TOKEN_INVALID if is_token else Reason.NOT_A_MEMBER, "", ""
    role, assignment_id = resolved.role, ""
    if not resolved.assigned.roles:
        reason = policy.reason(role, action, resource)
        if isinstance(reason, Conditional):
            reason = reason.reason(_evaluator(policy, question, resolved, (role,), at, memo))
    else:
        applicable = resolved.assigned.applicable(scope, resource, at)
        roles = (role, *applicable.names)
        decided, index = policy.reason_of_roles(roles, action, resource)
        if isinstance(decided, RoleReasons):
            decided, index = decided.decide(_evaluator(policy, question, resolved, roles, at, memo))
        reason = decided
        if index:
            role, _, _, assignment_id, _ = applicable.roles[index - 1]
    if resolved.restriction is None:
        return reason, role, assignment_id
    if reason is Reason.GRANTED and not permits(resolved.restriction, action, resource, scope):
        reason = Reason.TOKEN_SCOPE
    return reason, role, assignment_id


def _evaluator(
    policy: Policy,
    question: Question,
    resolved: ResolvedSubject | None,
    roles: tuple[str, ...],
    at: int,
    memo: Memo | None,
) -> Evaluate:
    """Return the function that evaluates conditions for a question about a subject with these roles."""
    return evaluator(policy, _values(question, resolved, roles, at), memo)


def _values(question: Question, resolved: ResolvedSubject | None, roles: tuple[str, ...], at: int) -> QuestionValues:
    """Return the values of a question about a subject with these roles."""
    subject, action, resource, scope, given = question
    if resolved is None:
        known = (ROLE, "", "")
    elif resolved.user_id:
        known = (USER, resolved.user_id, resolved.email_key)
    else:
        known = (TOKEN, subject.value, "")
    return QuestionValues(known, roles, action, resource, scope, at, given)


def _explained(
    policy: Policy, caller: Caller, question: Question, result: CheckResult, resolved: ResolvedSubject | None
) -> CheckResult:
    """Return the result with an explanation, of which only a caller that may `authorization explain` gets the rules."""
    rules = may(policy, caller, "explain", "authorization")
    values = _values(question, resolved, _applicable_roles(question, resolved), now())
    explanation = _explain(policy, question, result, values, rules=rules)
    if resolved is not None and resolved.assigned:
        roles = tuple(_explained_roles(policy, question, resolved, values, rules=rules))
        explanation = replace(explanation, roles=roles)
    return result._replace(explanation=explanation)


def _applicable_roles(question: Question, resolved: ResolvedSubject | None) -> tuple[str, ...]:
    """Return the roles that apply to a question, the one that the subject has everywhere first."""
    if resolved is None:
        return (question.subject.value,) if question.subject.kind is Kind.ROLE else ()
    return resolved.role, *resolved.assigned.applicable(question.scope, question.resource, now()).names


def _explain(policy: Policy, question: Question, result: CheckResult, values: Values, *, rules: bool) -> Explanation:
    if result.reason is Reason.NOT_A_MEMBER:
        passing = policy.roles_that_may(question.action, question.resource)
        return Explanation(_not_a_member(question.subject), roles_that_pass=passing)
    if result.reason is Reason.TOKEN_INVALID:
        return Explanation(
            "The organization has no such live token: it may be mistyped, expired or deleted, or have networks of which"
            " none has the `subject_address`."
        )
    if result.reason is Reason.TOKEN_SCOPE:
        return Explanation(
            f"{result.role} may `{question.action}` on `{question.resource}`, but the token is restricted to less:"
            " use one whose restriction covers it."
        )
    return _explain_role(policy, question, result.role, values, rules=rules)


def _explain_role(policy: Policy, question: Question, role: str, values: Values, *, rules: bool) -> Explanation:
    decision = policy.decide(role, question.action, question.resource, policy.evaluator(values))
    return explain(decision, values) if rules else explain_without_rules(decision)


def _explained_roles(
    policy: Policy, question: Question, resolved: ResolvedSubject, values: Values, *, rules: bool
) -> Iterator[RoleExplanation]:
    """Yield the roles that a subject has now, and whether and why each applies to the question."""
    _, action, resource, scope, _ = question
    evaluate = policy.evaluator(values)
    own = policy.decide(resolved.role, action, resource, evaluate).reason
    summary = _explain_role(policy, question, resolved.role, values, rules=rules).summary
    yield RoleExplanation(resolved.role, "", ORGANIZATION, applies=True, reason=own, summary=summary)
    at = now()
    applicable = {each.assignment_id for each in resolved.assigned.applicable(scope, resource, at).roles}
    # Those that apply first, as there may be more than are shown.
    assigned = sorted(resolved.assigned.at(at).roles, key=lambda each: each.assignment_id not in applicable)
    for each in assigned[:MAX_EXPLAINED_ROLES]:
        where = f"`{each.scope}`" if each.scope else "the whole organization"
        held = f"Assigned to {each.principal} at {where}"
        if each.expire_time != NEVER:
            held += f" until {rfc3339(each.expire_time)}"
        applies = each.assignment_id in applicable
        reason = policy.decide(each.role, action, resource, evaluate).reason if applies else None
        if applies:
            summary = f"{held}. {_explain_role(policy, question, each.role, values, rules=rules).summary}"
        else:
            summary = f"{held}, where neither the question's scope nor its resource is."
        yield RoleExplanation(each.role, each.assignment_id, each.scope, applies, reason, summary)


def _not_a_member(subject: Subject) -> str:
    """Explain that no member has this address or id."""
    match subject.kind:
        case Kind.EMAIL:
            return "No member of the organization has this address: check its spelling."
        case Kind.USER_ID:
            return "No member of the organization has this user id: check it, or write an address."
        case _:
            return (
                f"`{subject.value}` is neither an address nor a user id, so it is an external id, and no member of the"
                " organization has it: check it, or write an address, as `user:ann@acme.io`."
            )
