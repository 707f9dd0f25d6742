"""Decisions on subjects with assigned roles: as a plain model of the rules and as Casbin itself decide them."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rolecall.credentials import server_key
from rolecall.domain import (
    ORGANIZATION,
    Caller,
    CheckResult,
    CredentialKind,
    Effect,
    Organization,
    Page,
    PlanKind,
    Question,
    Reason,
    ResourcePlan,
    Subject,
    SubjectKind,
)
from rolecall.identity.authentication import Authenticator
from rolecall.identity.batch_loader import Miss
from rolecall.identity.cache import RevisionCache
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.directory import Directory
from rolecall.policy import Policy
from rolecall.policy.reload import LivePolicy
from rolecall.services.authorization import Authorizer, BatchAnswer
from rolecall.services.pagination import Pagination
from rolecall.storage import Storage
from rolecall.storage import organizations as organization_rows
from support.environment import CI
from support.policy_folders import casbin_over, write_folder
from support.random_assignments import ASKER, ENDED, RandomCase, World, casbin_text, policy_of, random_cases
from support.random_policies import matches

# Comparisons on each database.
WANTED = 50_000 if CI else 3_000
# Questions about each organization at a time.
QUESTIONS = 60 if CI else 20
CHANGES = 1
T = TypeVar("T")

PROPERTY = settings(
    deadline=None,
    # Without the phase that explains a failure, which takes a minute here.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
both_databases = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@dataclass
class PolicyInForce:
    """The policy that is in force, as a server's `LivePolicy` has it, without the folder that it is read from."""

    policy: Policy = field(default_factory=lambda: Policy([], [], "none"))

    @property
    def in_force(self) -> "PolicyInForce":
        """Stand for `LivePolicy.in_force`."""
        return self


@dataclass
class Services:
    """Decisions over one database: with a cache and the feed that keeps it fresh, and without one."""

    storage: Storage
    live: PolicyInForce
    cached: Authorizer
    uncached: Authorizer
    numbers: Iterator[int]

    @contextmanager
    def organizations(self, case: RandomCase) -> Iterator[list[tuple[str, World]]]:
        """Put the policy in force, and write the two organizations of a case; yield their names and content."""
        self.live.policy = policy_of(case)
        written = []
        for world in case.worlds:
            name = f"org-{next(self.numbers)}"
            self.storage.write(partial(organization_rows.add, organization=Organization(name, name, 0, 1)))
            written.append((name, self.storage.mutate(name, partial(world.write, organization=name))))
        yield written


@pytest.fixture
def services(storage: Storage, tmp_path: Path) -> Iterator[Services]:
    """Decisions over a new database."""
    feed = ChangeFeed(storage, RevisionCache(), max_staleness=60.0)
    feed.start()
    live = PolicyInForce()
    pages = Pagination(server_key.create(tmp_path / "rolecall.key"))

    def authorizer(known: ChangeFeed | None) -> Authorizer:
        directory = Directory(storage, Authenticator(storage, known), known)
        return Authorizer(storage, directory, cast("LivePolicy", live), pages)

    yield Services(storage, live, authorizer(feed), authorizer(None), itertools.count())
    feed.stop()


def asker_in(organization: str) -> Caller:
    """A caller who may ask about everybody."""
    return Caller(organization, "", CredentialKind.SESSION, "asker", "", ASKER)


def answered(answer: T | Miss[T]) -> T:
    """The answer, which may have to be loaded."""
    return answer.wait() if isinstance(answer, Miss) else answer


@dataclass
class Comparison:
    """Comparison of answers with the model and with Casbin, for one case."""

    case: RandomCase
    reference: Any
    seen: Counter[str]

    def expected(self, world: World, holder: str, question: Question) -> bool:
        """Compute the answer by the model; Casbin must agree with it on the roles."""
        if not holder:
            return False
        _, action, resource, scope, _ = question
        roles = {world.own[holder], *(each.role for each in world.applicable(holder, scope, resource))}
        may = self.case.allows(roles, action, resource)
        assert self._ask_casbin(roles, action, resource) is may, (roles, question)
        is_token = question.subject.kind in (SubjectKind.TOKEN_ID, SubjectKind.PRESENTED)
        return may and (not is_token or world.permits(holder, action, resource, scope))

    def hold(self, world: World, holder: str, question: Question, result: CheckResult) -> None:
        """Assert that an answer and the role that it names are those of the model."""
        expected = self.expected(world, holder, question)
        assert bool(result) is expected, (holder, question, result)
        self.seen[result.reason.name] += 1
        if not holder:
            assert result.reason in (Reason.NOT_A_MEMBER, Reason.TOKEN_INVALID)
            return
        _, action, resource, scope, _ = question
        if not result.assignment_id:
            assert result.role == world.own[holder], (question, result)
        else:
            assert result.role in {each.role for each in world.applicable(holder, scope, resource)}, question
            self.seen[f"{result.reason.name} by an assignment"] += 1
        # The role that is named has the deciding rule itself.
        alone = self.case.allows({result.role}, action, resource)
        if result.reason in (Reason.GRANTED, Reason.TOKEN_SCOPE):
            assert alone, (question, result)
        if result.reason is Reason.FORBIDDEN:
            rules = self.case.rules_of({result.role})
            assert any(
                rule.effect is Effect.DENY and rule.action in (action, "*") and matches(rule.resource, resource)
                for rule in rules
            ), (question, result)

    def _ask_casbin(self, roles: set[str], action: str, resource: str) -> bool:
        """Ask Casbin about a subject with a `g` row for each role."""
        subject = f"with {' and '.join(sorted(roles))}"
        for role in roles:
            self.reference.add_grouping_policy(subject, role)
        return bool(self.reference.enforce(subject, resource, action))


@pytest.mark.timeout(900)
@both_databases
def test_decisions_equal_those_of_the_model_and_of_casbin(services: Services, tmp_path: Path) -> None:
    """A Check, cached or not, before and after changes, answers as the model; so does each item of a BatchCheck.

    The model answers as Casbin does on a subject with a `g` row for each role that applies.
    """
    seen: Counter[str] = Counter()
    per_case = 2 * QUESTIONS * (1 + CHANGES)

    @settings(PROPERTY, max_examples=WANTED // per_case + 2)
    @given(random_cases())
    def compare(case: RandomCase) -> None:
        folder = write_folder(tmp_path / "policy", casbin_text(case))
        comparison = Comparison(case, casbin_over(folder), seen)
        with services.organizations(case) as written:
            for organization, world in written:
                _compare(services, comparison, organization, world)
                now_world = world
                for step in range(CHANGES):
                    change = partial(case.changed, organization=organization, world=now_world, step=step)
                    now_world = services.storage.mutate(organization, change)
                    _compare(services, comparison, organization, now_world)

    compare()

    reasons = {reason: seen[reason.name] for reason in Reason}
    assert sum(reasons.values()) >= WANTED
    assert min(reasons[reason] for reason in (Reason.GRANTED, Reason.FORBIDDEN, Reason.NOT_GRANTED)) > WANTED // 500
    # These are rarer, as they take a restricted token, or an assignment that decides.
    rare = (Reason.TOKEN_SCOPE.name, "GRANTED by an assignment", "FORBIDDEN by an assignment")
    assert min(seen[each] for each in rare) > WANTED // 500, seen


def _compare(services: Services, comparison: Comparison, organization: str, world: World) -> None:
    """Compare the answers to random questions about one organization with the model."""
    asker = asker_in(organization)
    asked = list(comparison.case.questions(world, QUESTIONS))
    questions = [question for _, question in asked]
    singles = [answered(services.cached.check_cached(asker, question)) for question in questions]
    for (holder, question), result in zip(asked, singles, strict=True):
        comparison.hold(world, holder, question, result)
    reasons = [result.reason for result in singles]
    # All of them are cached by now.
    batch = services.cached.batch_check_cached(asker, questions)
    assert isinstance(batch, BatchAnswer)
    assert batch.reasons == reasons
    assert answered(services.uncached.batch_check_cached(asker, questions)).reasons == reasons
    for question, result in list(zip(questions, singles, strict=True))[:2]:
        assert answered(services.uncached.check_cached(asker, question)) == result


@both_databases
def test_explanations_name_the_roles_that_apply(services: Services) -> None:
    """An explanation lists each role that the subject has now, and says of each whether it applies."""
    applied: Counter[bool] = Counter()

    @settings(PROPERTY, max_examples=60 if CI else 8)
    @given(random_cases())
    def compare(case: RandomCase) -> None:
        with services.organizations(case) as written:
            for organization, world in written:
                for holder, question in case.questions(world, 10):
                    result = answered(services.cached.check_cached(asker_in(organization), question, explained=True))
                    assert result.explanation is not None
                    found = [(each.role, each.scope, each.applies) for each in result.explanation.roles]
                    if not holder or not found:
                        assert not holder or not world.assigned_to(holder)
                        continue
                    applicable = world.applicable(holder, question.scope, question.resource)
                    held = [each for each in world.assigned_to(holder) if each.life != ENDED]
                    assert found[0] == (world.own[holder], ORGANIZATION, True)
                    assert sorted(found[1:]) == sorted((each.role, each.scope, each in applicable) for each in held)
                    applied.update(each[2] for each in found[1:])

    compare()

    assert min(applied[True], applied[False]) > 10


def _plan_covers(plan: ResourcePlan, resource: str) -> bool:
    """Whether a plan has a resource."""
    if plan.kind is not PlanKind.CONDITIONAL:
        return plan.kind is PlanKind.ALWAYS
    return any(matches(pattern, resource) for pattern in plan.include) and not any(
        matches(pattern, resource) for pattern in plan.exclude
    )


def _joined(page: Callable[[Page], Any], items: str, size: int) -> Sequence[Any]:
    """All entries of a list, read in pages of this size."""
    found: list[Any] = []
    token = ""
    while True:
        answer = page(Page(size, token))
        found += getattr(answer, items)
        token = answer.next_page_token
        if not token:
            return found


@both_databases
def test_lists_and_plans_agree_with_checks(services: Services) -> None:
    """ListPermissions, PlanResources, ListSubjects and ListResources say what Checks of each resource say."""
    compared: Counter[str] = Counter()

    @settings(PROPERTY, max_examples=120 if CI else 12)
    @given(random_cases(), st.sampled_from([1, 2, 50]))
    def compare(case: RandomCase, size: int) -> None:
        with services.organizations(case) as written:
            for organization, world in written:
                asked = Lists(services, organization, case, world, size)
                for _, question in case.questions(world, 6):
                    asked.compare_permissions(question, compared)
                    asked.compare_plan(question, compared)
                    asked.compare_subjects(question, compared)
                    asked.compare_resources(question, compared)

    compare()

    for what in ("permissions", "plans", "subjects", "resources"):
        assert min(compared[f"{what} yes"], compared[f"{what} no"]) > 5, compared


@dataclass
class Lists:
    """The lists of one organization, compared with Checks."""

    services: Services
    organization: str
    case: RandomCase
    world: World
    size: int

    def may(self, questions: Sequence[Question]) -> list[bool]:
        """Whether each question is answered with yes."""
        answer = answered(self.services.cached.batch_check_cached(asker_in(self.organization), questions))
        return [reason is Reason.GRANTED for reason in answer.reasons]

    def near(self, question: Question) -> list[str]:
        """Resources near what is ruled and assigned."""
        found = {each.resource for _, each in self.case.questions(self.world, 20)}
        kind = question.resource.partition("/")[0]
        return sorted({*found, question.resource, f"{kind}/a", f"{kind}/zz", f"{kind}/a/b"})

    def compare_permissions(self, question: Question, compared: Counter[str]) -> None:
        """Compare ListPermissions for a scope."""
        subject, action, _, scope, _ = question
        asker = asker_in(self.organization)
        list_page = partial(self.services.cached.list_permissions, asker, subject, scope=scope)
        held = _joined(list_page, "permissions", self.size)
        resources = self.near(question)
        expected = self.may([Question(subject, action, resource, scope) for resource in resources])
        for resource, may in zip(resources, expected, strict=True):
            effects = {
                each.effect for each in held if matches(each.resource, resource) and each.action in (action, "*")
            }
            assert (effects == {Effect.ALLOW}) is may, (question, resource, held)
            compared[f"permissions {'yes' if may else 'no'}"] += 1

    def compare_plan(self, question: Question, compared: Counter[str]) -> None:
        """Compare PlanResources of the resource's type, for a scope."""
        subject, action, resource, scope, _ = question
        kind = resource.partition("/")[0]
        asker = asker_in(self.organization)
        plan = self.services.cached.plan_resources(asker, subject, action, kind, scope=scope)
        resources = [path for path in self.near(question) if path.startswith(f"{kind}/")]
        expected = self.may([Question(subject, action, path, scope) for path in resources])
        for path, may in zip(resources, expected, strict=True):
            assert _plan_covers(plan, path) is may, (question, path, plan)
            compared[f"plans {'yes' if may else 'no'}"] += 1

    def compare_subjects(self, question: Question, compared: Counter[str]) -> None:
        """Compare ListSubjects for a scope."""
        _, action, resource, scope, _ = question
        asker = asker_in(self.organization)
        list_page = partial(self.services.cached.list_subjects, asker, action, resource, scope=scope)
        listed = [member.user_id for member in _joined(list_page, "members", self.size)]
        people = sorted(name for name in self.world.own if name in ("ann", "bob", "cyd"))
        questions = [Question(Subject(SubjectKind.USER_ID, name), action, resource, scope) for name in people]
        expected = [name for name, may in zip(people, self.may(questions), strict=True) if may]
        assert listed == expected, question
        compared["subjects yes"] += len(listed)
        compared["subjects no"] += len(people) - len(listed)

    def compare_resources(self, question: Question, compared: Counter[str]) -> None:
        """Compare ListResources of the resource's type: of the paths that rules and assignments name."""
        subject, action, resource, *_ = question
        kind = resource.partition("/")[0]
        list_page = partial(self.services.cached.list_resources, asker_in(self.organization), subject, action, kind)
        listed = _joined(list_page, "resources", self.size)
        named = {rule.resource for rule in self.services.live.policy.rules if not rule.resource.endswith("*")}
        named |= {each.scope for each in self.world.assignments}
        paths = sorted(path for path in named if f"{path}/".startswith(f"{kind}/"))
        expected = self.may([Question(subject, action, path) for path in paths]) if paths else []
        assert listed == [path for path, may in zip(paths, expected, strict=True) if may], question
        compared["resources yes"] += sum(expected)
        compared["resources no"] += len(expected) - sum(expected)
