"""Role assignments: create, list, change and end them. See docs/concepts.md, rule 7."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rolecall.audit import Private
from rolecall.credentials.token_format import new_id
from rolecall.domain import (
    NEVER,
    ORGANIZATION,
    AssignmentQuery,
    Caller,
    Page,
    Principal,
    PrincipalKind,
    RoleAssignment,
    now,
    rfc3339,
)
from rolecall.errors import (
    AssignmentExists,
    AssignmentNotFound,
    BatchSize,
    InvalidField,
    RolecallError,
    TooMany,
    combine,
)
from rolecall.policy.reload import LivePolicy
from rolecall.services.assignment_rules import (
    CREATE,
    DELETE,
    MAX_PER_PRINCIPAL,
    VIEW,
    is_own,
    may_update_owners,
    may_view,
    require_assignable_role,
    require_changeable,
)
from rolecall.services.caller_permissions import is_self, require, require_known
from rolecall.services.pagination import Pagination
from rolecall.services.principals import NamedPrincipal, find
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    DryRun,
    Outcome,
    Unchanged,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as rows

__all__ = [
    "AssignmentPage",
    "ChangedAssignment",
    "CreatedAssignments",
    "NewAssignment",
    "RoleAssignments",
    "audit_details",
    "require_batch",
]

# Maximum assignments in one request.
MAX_BATCH = 200
# Maximum lifetime of an assignment that ends by itself, in microseconds: 10 years.
MAX_LIFE = 10 * 366 * 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class NewAssignment:
    """Specification of an assignment. It ends at `expire_time`, after `life` microseconds, or, with neither, never."""

    principal: NamedPrincipal
    role: str
    scope: str = ORGANIZATION
    expire_time: int | None = None
    life: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class CreatedAssignments(Answer):
    """Answer to a creation: the assignments in the order of the request."""

    assignments: tuple[RoleAssignment, ...]


@dataclass(frozen=True, slots=True)
class ChangedAssignment(Answer):
    """Answer to a change or a deletion of an assignment."""

    assignment: RoleAssignment


@dataclass(frozen=True, slots=True)
class AssignmentPage:
    """A page of assignments."""

    assignments: tuple[RoleAssignment, ...]
    next_page_token: str


class RoleAssignments:
    """Use cases of AssignmentService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, unit_of_work: UnitOfWork, storage: Storage, live: LivePolicy, pages: Pagination) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._pages = pages

    def create(
        self, request: ChangeRequest, wanted: Sequence[NewAssignment], *, validate_only: bool = False
    ) -> CreatedAssignments:
        """Assign roles, all or none; with `validate_only`, check only. An ended assignment is replaced.

        Raises one error that combines those of all entries: `PermissionMissing`, `RoleBeyondCaller`,
        `UnknownRoleName`, `InvalidField`, `MemberNotFound`, `TeamNotFound`, `TokenNotFound`, `AssignmentExists`,
        `TooMany`.
        """

        def authorize(context: ChangeContext) -> tuple[RoleAssignment, ...]:
            created: list[RoleAssignment] = []
            problems: list[RolecallError] = []
            for number, each in enumerate(wanted):
                try:
                    created.append(_assignment(context, each, f"assignments[{number}]"))
                except RolecallError as error:
                    problems.append(error)
            if problems:
                raise combine(problems)
            return tuple(created)

        def effect(context: ChangeContext, created: tuple[RoleAssignment, ...]) -> Outcome[CreatedAssignments]:
            tx, organization = context.tx, context.caller.organization
            ended = _require_new(context, created)
            for assignment in ended:
                rows.remove(tx, assignment)
            _require_room(context, created)
            answer = CreatedAssignments(tuple(replace(each, changed=tx.revision) for each in created))
            if validate_only:
                return DryRun(answer)
            rows.add(tx, answer.assignments)
            details = {"after": [{"id": each.id, **audit_details(each)} for each in answer.assignments]}
            return Written(answer, f"organization:{organization}", details)

        return self._unit_of_work.run(request, CreatedAssignments, authorize, effect)

    def get(self, caller: Caller, assignment_id: str) -> RoleAssignment:
        """Get one assignment. Raises `AssignmentNotFound`, also for one that the caller may not see."""
        found = self._storage.read(lambda tx: rows.get(tx, caller.organization, assignment_id))
        if found is None or not may_view(self._live.in_force.policy, caller, found):
            raise _not_found(assignment_id)
        return found

    def list(self, caller: Caller, named: NamedPrincipal | None, role: str, scope: str, page: Page) -> AssignmentPage:
        """List the assignments of a principal, of a role, and at a scope or beneath it, the newest first.

        Raises `PermissionMissing`, `UnknownRoleName`, `MemberNotFound`, `TeamNotFound`, `TokenNotFound`,
        `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy

        def work(tx: Transaction) -> tuple[tuple[str, ...], list[RoleAssignment]]:
            principal: Principal | None = None
            if named is None or not _names_caller(caller, named):
                require(policy, caller, VIEW, "assignments", scope)
            if named is not None:
                principal, _ = find(tx, caller.organization, named, now(), "principal")
            shown = principal.text if principal else ""
            list_scope = ("ListRoleAssignments", caller.organization, shown, role, scope)
            position = self._pages.position(list_scope, page)
            after = (int(position[0]), position[1]) if position else None
            query = AssignmentQuery(principal, role, scope)
            return list_scope, rows.page(tx, caller.organization, query, after, size + 1)

        if role:
            require_known(policy, role, "role")
        list_scope, found = self._storage.read(work)
        last = found[size - 1] if len(found) > size else None
        token = self._pages.token(list_scope, [str(last.create_time), last.id]) if last else ""
        return AssignmentPage(tuple(found[:size]), token)

    def update(
        self, request: ChangeRequest, assignment_id: str, expire_time: int | None, note: str | None, etag: str
    ) -> ChangedAssignment:
        """Change an assignment's end (`NEVER`: none) and note; None leaves it as it is.

        Raises `PermissionMissing`, `RoleBeyondCaller`, `AssignmentNotFound`, `InvalidField`, `EtagMismatch`.
        """

        def authorize(context: ChangeContext) -> RoleAssignment:
            found = _find(context, assignment_id, "assignment.id")
            # Who shortens it must have been able to give it, and to end it.
            until = found.expire_time if expire_time is None else max(expire_time, found.expire_time)
            require_changeable(context, CREATE, [replace(found, expire_time=until)], [found.principal], "assignment.id")
            if expire_time is not None and expire_time < found.expire_time:
                require_changeable(context, DELETE, [found], [found.principal], "assignment.id")
            require_assignable_role(context.policy, found.role, "assignment.id")
            return found

        def effect(context: ChangeContext, found: RoleAssignment) -> Outcome[ChangedAssignment]:
            require_etag(etag, found.etag, "assignment.etag")
            wanted = replace(
                found,
                expire_time=found.expire_time if expire_time is None else expire_time,
                note=found.note if note is None else note,
            )
            if wanted == found:
                return Unchanged(ChangedAssignment(found))
            if wanted.expire_time != found.expire_time:
                _require_life(wanted.expire_time, context.at, "assignment.expire_time")
            changed = rows.change(context.tx, wanted)
            details = {"before": audit_details(found), "after": audit_details(changed)}
            return Written(ChangedAssignment(changed), f"assignment:{found.id}", details)

        return self._unit_of_work.run(request, ChangedAssignment, authorize, effect)

    def delete(self, request: ChangeRequest, assignment_id: str, etag: str) -> ChangedAssignment:
        """End an assignment. Raises `PermissionMissing`, `RoleBeyondCaller`, `AssignmentNotFound`, `EtagMismatch`."""

        def authorize(context: ChangeContext) -> RoleAssignment:
            found = _find(context, assignment_id, "id")
            require_changeable(context, DELETE, [found], [found.principal], "id")
            return found

        def effect(context: ChangeContext, found: RoleAssignment) -> Outcome[ChangedAssignment]:
            require_etag(etag, found.etag)
            rows.remove(context.tx, found)
            return Written(ChangedAssignment(found), f"assignment:{found.id}", {"before": audit_details(found)})

        return self._unit_of_work.run(request, ChangedAssignment, authorize, effect)


def audit_details(assignment: RoleAssignment) -> Mapping[str, Any]:
    """Details of an assignment for the audit log. Its note may be about the person, and is erased with them."""
    principal, note = assignment.principal, assignment.note
    return {
        "principal": principal.text,
        "role": assignment.role,
        "scope": assignment.scope,
        "expire_time": None if assignment.expire_time == NEVER else rfc3339(assignment.expire_time),
        "note": Private(principal.id, note) if note and principal.kind is PrincipalKind.USER else note,
    }


def require_batch(size: int) -> None:
    """Raise `BatchSize` unless a request may have `size` assignments."""
    if not 1 <= size <= MAX_BATCH:
        raise BatchSize(
            f"assignments has {size} entries; it must have 1 to {MAX_BATCH}: split the list, or add entries.",
            field="assignments",
            size=str(size),
            maximum=str(MAX_BATCH),
        )


def _assignment(context: ChangeContext, wanted: NewAssignment, field: str) -> RoleAssignment:
    """Return the assignment that is wanted; raise unless the caller may create it.

    A caller who may not does not learn whether the principal exists.
    """
    policy, caller = context.policy, context.caller
    if not may_update_owners(policy, caller):
        require(policy, caller, CREATE, "assignments", wanted.scope)
    require_known(policy, wanted.role, f"{field}.role")
    require_assignable_role(policy, wanted.role, f"{field}.role")
    principal, name = find(context.tx, caller.organization, wanted.principal, context.at, f"{field}.principal")
    assignment = RoleAssignment(
        caller.organization,
        new_id(),
        principal,
        wanted.role,
        wanted.scope,
        caller.actor,
        context.at,
        _end(wanted, context.at, field),
        wanted.note,
        context.tx.revision,
        name,
    )
    require_changeable(context, CREATE, [assignment], [principal], f"{field}.role")
    return assignment


def _end(wanted: NewAssignment, at: int, field: str) -> int:
    """Return when a new assignment ends. Raises `InvalidField`."""
    if wanted.life is not None:
        return _require_life(at + wanted.life, at, f"{field}.ttl")
    if wanted.expire_time is not None:
        return _require_life(wanted.expire_time, at, f"{field}.expire_time")
    return NEVER


def _require_life(end: int, at: int, field: str) -> int:
    if end == NEVER:
        return end
    name = field.rpartition(".")[2]
    if end <= at:
        raise InvalidField(f"{name} is not in the future: give a later one, or leave it out for no end.", field=field)
    if end > at + MAX_LIFE:
        raise InvalidField(f"{name} is more than 10 years from now: give an earlier one, or none.", field=field)
    return end


def _require_new(context: ChangeContext, created: Sequence[RoleAssignment]) -> list[RoleAssignment]:
    """Return the ended assignments that are to be replaced. Raises one `AssignmentExists` for all that exist."""
    keys = [(each.principal.text, each.role, each.scope) for each in created]
    present = rows.present(context.tx, context.caller.organization, keys)
    ended: list[RoleAssignment] = []
    problems: list[RolecallError] = []
    first: dict[tuple[str, str, str], int] = {}
    for number, (each, key) in enumerate(zip(created, keys, strict=True)):
        field = f"assignments[{number}]"
        where = f"at `{each.scope}`" if each.scope else "in the whole organization"
        found = present.get(key)
        if key in first:
            message = f"{key[0]} gets {each.role} {where} by assignments[{first[key]}] too: leave one out."
            problems.append(AssignmentExists(message, field=field))
        elif found and context.at < found.expire_time:
            message = f"{key[0]} has {each.role} {where} already: change or delete the assignment `{found.id}`."
            problems.append(AssignmentExists(message, field=field, id=found.id))
        elif found:
            ended.append(found)
        first.setdefault(key, number)
    if problems:
        raise combine(problems)
    return ended


def _require_room(context: ChangeContext, created: Sequence[RoleAssignment]) -> None:
    """Raise `TooMany` if a principal would have too many assignments."""
    for principal, number in Counter(each.principal for each in created).items():
        if rows.count(context.tx, context.caller.organization, principal) + number > MAX_PER_PRINCIPAL:
            raise TooMany(
                f"{principal.text} would have more than {MAX_PER_PRINCIPAL} assignments: delete some, assign a role at"
                " a wider scope, or assign it to teams.",
                field="assignments",
                subject=principal.text,
                maximum=str(MAX_PER_PRINCIPAL),
            )


def _find(context: ChangeContext, assignment_id: str, field: str) -> RoleAssignment:
    """Return an assignment that the caller may see, or may change as one who may `owners update`."""
    found = rows.get(context.tx, context.caller.organization, assignment_id)
    if found is None or not (
        may_view(context.policy, context.caller, found) or may_update_owners(context.policy, context.caller)
    ):
        raise _not_found(assignment_id, field)
    return found


def _names_caller(caller: Caller, named: NamedPrincipal) -> bool:
    """Whether a request names the caller itself, or one of its teams."""
    if isinstance(named, Principal):
        return is_own(caller, named)
    return is_self(caller, named)


def _not_found(assignment_id: str, field: str = "id") -> AssignmentNotFound:
    return AssignmentNotFound(
        f"There is no role assignment `{assignment_id}` here that you may see: find the id with ListRoleAssignments.",
        field=field,
    )
