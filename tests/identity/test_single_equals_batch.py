"""Code that is written out for batches, for speed, answers each item exactly as its twin for one does."""

from hypothesis import given
from hypothesis import strategies as st

from rolecall.domain import (
    NEVER,
    AssignedRole,
    AssignedRoles,
    Effect,
    ItemError,
    Permission,
    Question,
    Restriction,
    Subject,
    SubjectKind,
)
from rolecall.errors import InvalidField
from rolecall.identity.cache import LoadedEntry, RevisionCache
from rolecall.identity.directory import ResolvedSubject, ResolvedSubjects
from rolecall.limits import Limits
from rolecall.policy import Policy, Rule
from rolecall.policy.parsed import Inheritance
from rolecall.server import requests, responses
from rolecall.services import authorization
from rolecall.services.authorization import BatchAnswer
from rolecall.storage import Change
from rolecall.v1 import authorization_pb2 as pb

KEYS = ("ann", "bob", "cyd")
ROLES = ("TOP", "LOW", "GONE")
WORDS = ("docs", "docs/a", "secrets", "", "*", "docs//a", "read", "write", "x" * 400)
SUBJECTS = ("ann@acme.io", "user:1", "token:2", "role:TOP", "nonsense", "", "role:", "é@acme.io", "user:*")

texts = st.sampled_from(WORDS) | st.text(max_size=12)
entries = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(["TOP", None]), st.integers(1, 4), st.sampled_from([60.0, -1.0])),
    max_size=6,
)
changes = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["member", "organization"]), st.sampled_from(KEYS)), max_size=6
)


@given(entries, changes, st.lists(st.sampled_from([*KEYS, "nobody"]), max_size=5))
def test_cache_reads_many_as_one_by_one(
    loaded: list[tuple[str, str | None, int, float]], changed: list[tuple[int, str, str]], wanted: list[str]
) -> None:
    """`get_many` is a miss exactly where `get_one` is for any key, and has the same values and revision else."""
    cache = RevisionCache(Limits(cached_entries=100))
    for key, value, revision, seconds in loaded:
        cache.put("acme", revision, [LoadedEntry(key, value, (key,), seconds)], cache.epoch)
    cache.apply([Change("acme", *change) for change in sorted(changed)], own=False)
    singles = [cache.get_one("acme", key) for key in wanted]

    many = cache.get_many("acme", [Subject(SubjectKind.ROLE, "x")] if not wanted else [_Keyed(key) for key in wanted])

    if not wanted:
        assert many is None or many[1] == [None]
    elif any(single is None for single in singles):
        assert many is None
    else:
        known = [single for single in singles if single]
        assert many == (known[0][0], [value for _, value in known])


class _Keyed:
    def __init__(self, key: str) -> None:
        self.key = key


@given(st.lists(st.tuples(st.sampled_from(SUBJECTS), st.sampled_from(["", "rcp_x"]), texts, texts), max_size=6))
def test_requests_parse_many_as_one_by_one(items: list[tuple[str, str, str, str]]) -> None:
    """`questions` gives `question`'s values and errors, in order; with `ascii_only`, nothing where one is beyond."""
    messages = [
        pb.BatchCheckItem(subject_token=t, action=a, resource=r)
        if t
        else pb.BatchCheckItem(subject=s, action=a, resource=r)
        for s, t, a, r in items
    ]
    good: list[Question] = []
    bad: dict[int, ItemError] = {}
    for place, message in enumerate(messages):
        try:
            good.append(requests.question(message))
        except InvalidField as error:
            bad[place] = ItemError(error.field, error.message)

    assert requests.questions(messages) == (good, bad)
    beyond = any(not message.subject.isascii() for message in messages)
    assert requests.questions(messages, ascii_only=True) == (None if beyond else (good, bad))


POLICY = Policy(
    [
        Rule("TOP", "docs", "read", Effect.ALLOW, 1),
        Rule("TOP", "docs/a", "read", Effect.DENY, 2),
        Rule("LOW", "secrets", "*", Effect.ALLOW, 3),
    ],
    [Inheritance("TOP", "LOW", 4)],
    "v",
)
restrictions = st.none() | st.builds(
    Restriction,
    st.none() | st.just((Permission("docs", "read", Effect.ALLOW),)),
    st.sampled_from(["", "p", "docs/a"]),
)
assigned = st.builds(
    AssignedRole,
    st.sampled_from(ROLES),
    st.sampled_from(["", "p", "p/a", "docs/a"]),
    st.sampled_from([0, NEVER]),
    st.sampled_from(["one", "two"]),
    st.just("user:1"),
)
resolved = st.none() | st.builds(
    ResolvedSubject,
    st.sampled_from(ROLES),
    restrictions,
    assigned=st.builds(AssignedRoles, st.lists(assigned, max_size=3).map(tuple)),
)
asked = st.builds(
    Question,
    st.builds(Subject, st.sampled_from(list(SubjectKind)), st.sampled_from(ROLES)),
    st.sampled_from(["read", "write", "fly"]),
    st.sampled_from(["docs", "docs/a", "docs/b", "secrets/x", "planes"]),
    st.sampled_from(["", "p", "p/a/b", "q"]),
)


@given(st.lists(st.tuples(asked, resolved), max_size=8))
def test_decisions_on_many_equal_those_one_by_one(pairs: list[tuple[Question, ResolvedSubject | None]]) -> None:
    """`_reasons` gives `_reason` for each; and a batch's serialized results say what single responses say."""
    questions = [question for question, _ in pairs]
    subjects = ResolvedSubjects(7, [subject for _, subject in pairs])

    reasons = authorization._reasons(POLICY, subjects, questions)

    singles = [authorization._result(POLICY, q, 7, subject) for q, subject in pairs]
    assert reasons == [single.reason for single in singles]
    batch = pb.BatchCheckResponse.FromString(responses.batch_response(BatchAnswer(reasons, 7, "v"), {}))
    one_by_one = [pb.CheckResponse.FromString(responses.check_response(single)) for single in singles]
    assert [(item.decision, item.reason) for item in batch.results] == [
        (one.decision, one.reason) for one in one_by_one
    ]
    assert (batch.revision, batch.policy_version) == (7, "v")
