"""Members, teams and organization tokens that a request names."""

from collections.abc import Sequence

from rolecall.domain import Member, Principal, PrincipalKind, Subject, SubjectKind, TokenState
from rolecall.errors import InvalidField, MemberNotFound, RolecallError, TeamNotFound, TokenNotFound, combine
from rolecall.storage import Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import teams as team_rows
from rolecall.storage import tokens as token_rows

__all__ = ["NamedPrincipal", "find", "find_member", "find_members", "team_not_found"]

# A principal as a request names it: a team by its id, a member or token in a form of a subject.
NamedPrincipal = Subject | Principal


def find(tx: Transaction, organization: str, named: NamedPrincipal, at: int, field: str) -> tuple[Principal, str]:
    """Find a principal and its name. Raises `MemberNotFound`, `TeamNotFound`, `TokenNotFound`, `InvalidField`."""
    if isinstance(named, Principal):
        team = team_rows.get(tx, organization, named.id)
        if team is None:
            raise team_not_found(named.id, field)
        return named, team.display_name
    if named.kind is SubjectKind.TOKEN_ID:
        token = token_rows.get(tx, organization, named.value)
        if token is None or token.state(at) is not TokenState.ACTIVE:
            raise TokenNotFound(
                f"The organization has no live token `{named.value}`: find the id with ListTokens.", field=field
            )
        if token.user_id:
            raise InvalidField(
                f"`{named.text}` is a person's token, which has the roles of that person: name `user:{token.user_id}`.",
                field=field,
            )
        return Principal(PrincipalKind.TOKEN, token.id), token.display_name
    member = find_member(tx, organization, named, field)
    return Principal(PrincipalKind.USER, member.user_id), member.email


def find_member(tx: Transaction, organization: str, named: Subject, field: str) -> Member:
    """Find a member. Raises `MemberNotFound` for `field`."""
    member: Member | None = None
    match named.kind:
        case SubjectKind.USER_ID:
            member = member_rows.get(tx, organization, named.value)
        case SubjectKind.EMAIL:
            member = member_rows.by_email(tx, organization, named.value)
        case SubjectKind.EXTERNAL_ID:
            found = member_rows.roles_by_external_id(tx, organization, [named.value]).get(named.value)
            member = member_rows.get(tx, organization, found[1]) if found else None
        case SubjectKind.TOKEN_ID | SubjectKind.PRESENTED | SubjectKind.ROLE:
            pass
    if member is None:
        raise MemberNotFound(
            f"The organization has no member `{named.value}`: find the user_id with ListMembers.", field=field
        )
    return member


def find_members(tx: Transaction, organization: str, named: Sequence[Subject], field: str) -> dict[str, Member]:
    """Find several members, by user id. Raises one `MemberNotFound` for all that don't exist."""
    found: dict[str, Member] = {}
    problems: list[RolecallError] = []
    for number, each in enumerate(named):
        try:
            member = find_member(tx, organization, each, f"{field}[{number}]")
        except MemberNotFound as error:
            problems.append(error)
        else:
            found[member.user_id] = member
    if problems:
        raise combine(problems)
    return found


def team_not_found(team_id: str, field: str) -> TeamNotFound:
    """Return the error for a team that is missing, or that the caller may not see."""
    return TeamNotFound(f"There is no team `{team_id}` here that you may see: find the id with ListTeams.", field=field)
