"""What is asked of Check about the credentials and people of an organization, and what the model answers."""

from people_model import Cred, Org, Pattern, Person, Rules

from rolecall.authorizer import Authorizer
from rolecall.domain import Caller, CredentialKind, Question, Reason, Subject, SubjectKind

__all__ = ["Asked"]


class Asked:
    """Questions that are asked in one organization together. Each gets the answer that the model gives."""

    def __init__(self, law: Rules, org: Org) -> None:
        self._law = law
        self._org = org
        self._people = {person.id for person in org.present}
        self._creds = {cred.id for cred in org.live}
        self._questions: list[Question] = []
        self._expected: list[bool] = []
        # The places of the questions about a credential and, just after them, its holder.
        self._pairs: list[int] = []

    def of_credential(self, cred: Cred, point: Pattern) -> None:
        """Ask of a credential, of whatever organization, and of its holder, who may as much at least."""
        may = cred.id in self._creds and self._law.can(cred, *point)
        if cred.person:
            self._pairs.append(len(self._questions))
            self._ask(SubjectKind.TOKEN_ID, cred.id, point, expected=may)
            self._of_user(cred.person, point)
        else:
            # A program has nobody but its role.
            assert not may or self._law.has(self._law.of_role[cred.own_role], *point)
            self._ask(SubjectKind.TOKEN_ID, cred.id, point, expected=may)

    def of_person(self, person: Person, point: Pattern) -> None:
        """Ask of a person, of whatever organization, by their id and by their address."""
        self._of_user(person, point)
        known = self._org.member(person.key)
        may = known is not None and self._law.has(self._law.of_role[known.role], *point)
        self._ask(SubjectKind.EMAIL, person.key, point, expected=may)

    def hold(self, authorizer: Authorizer) -> None:
        """Ask everything at once, and compare."""
        asker = Caller(self._org.name, "", CredentialKind.SESSION, "", "", self._law.owners[0])
        answer = authorizer.batch_check(asker, self._questions)
        granted = [reason is Reason.GRANTED for reason in answer.reasons]

        assert answer.revision == self._org.revision
        assert [place for place in self._pairs if granted[place] and not granted[place + 1]] == []
        wrong = [place for place, may in enumerate(self._expected) if granted[place] != may]
        assert not wrong, self._questions[wrong[0]]

    def _of_user(self, person: Person, point: Pattern) -> None:
        may = person.id in self._people and self._law.has(self._law.of_role[person.role], *point)
        self._ask(SubjectKind.USER_ID, person.id, point, expected=may)

    def _ask(self, kind: SubjectKind, value: str, point: Pattern, *, expected: bool) -> None:
        resource, action = point
        self._questions.append(Question(Subject(kind, value), action, resource))
        self._expected.append(expected)
