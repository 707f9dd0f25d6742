"""Questions to Check about the credentials and people of an organization, with the model's answers."""

from rolecall.domain import Caller, CredentialKind, Question, Reason, Subject, SubjectKind
from rolecall.identity.batch_loader import Miss
from rolecall.services.authorization import Authorizer
from stateful.credential_model import Pattern, Person
from stateful.people_model import ModelCredential, ModelOrganization, Rules

__all__ = ["QuestionBatch"]


class QuestionBatch:
    """Batch of questions in one organization, each with the model's answer."""

    def __init__(self, rules: Rules, org: ModelOrganization) -> None:
        self._rules = rules
        self._org = org
        self._people = {person.id for person in org.present}
        self._creds = {cred.id for cred in org.live}
        self._questions: list[Question] = []
        self._expected: list[bool] = []
        # The places of the questions about a credential and, just after them, its holder.
        self._pairs: list[int] = []

    def of_credential(self, cred: ModelCredential, point: Pattern) -> None:
        """Add a question about a credential of any organization, and one about its holder, who may at least as much."""
        may = cred.id in self._creds and self._rules.can(cred, *point)
        if cred.person:
            self._pairs.append(len(self._questions))
            self._ask(SubjectKind.TOKEN_ID, cred.id, point, expected=may)
            self._of_user(cred.person, point)
        else:
            # A program has only its role.
            assert not may or self._rules.has(self._rules.of_role[cred.own_role], *point)
            self._ask(SubjectKind.TOKEN_ID, cred.id, point, expected=may)

    def of_person(self, person: Person, point: Pattern) -> None:
        """Add questions about a person of any organization, by their id and by their address."""
        self._of_user(person, point)
        known = self._org.member(person.key)
        may = known is not None and self._rules.has(self._rules.of_role[known.role], *point)
        self._ask(SubjectKind.EMAIL, person.key, point, expected=may)

    def check(self, authorizer: Authorizer) -> None:
        """Ask all questions in one BatchCheck, and compare the answers."""
        asker = Caller(self._org.name, "", CredentialKind.SESSION, "", "", self._rules.owners[0])
        answer = authorizer.batch_check_cached(asker, self._questions)
        if isinstance(answer, Miss):
            answer = answer.wait()
        granted = [reason is Reason.GRANTED for reason in answer.reasons]

        assert answer.revision == self._org.revision
        assert [place for place in self._pairs if granted[place] and not granted[place + 1]] == []
        wrong = [place for place, may in enumerate(self._expected) if granted[place] != may]
        assert not wrong, self._questions[wrong[0]]

    def _of_user(self, person: Person, point: Pattern) -> None:
        may = person.id in self._people and self._rules.has(self._rules.of_role[person.role], *point)
        self._ask(SubjectKind.USER_ID, person.id, point, expected=may)

    def _ask(self, kind: SubjectKind, value: str, point: Pattern, *, expected: bool) -> None:
        resource, action = point
        self._questions.append(Question(Subject(kind, value), action, resource))
        self._expected.append(expected)
