"""SessionService."""

from rolecall.domain import Token
from rolecall.errors import InvalidField
from rolecall.mutations import Arrival
from rolecall.server import fields
from rolecall.server.calls import Call
from rolecall.sessions import Sessions
from rolecall.v1 import session_pb2 as pb

__all__ = ["SessionService"]

MAX_PERMISSIONS = 1000


class SessionService:
    """Signs people in, looks at the presented credential, and ends it."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def RequestSignIn(self, request: pb.RequestSignInRequest, arrival: Arrival) -> pb.RequestSignInResponse:
        """Have a link mailed."""
        if not request.organization:
            raise InvalidField(
                "organization is not set: say where you want to sign in (--organization, ROLECALL_ORGANIZATION).",
                field="organization",
            )
        self._sessions.request_sign_in(arrival, fields.slug(request.organization), request.email)
        return pb.RequestSignInResponse()

    def SignIn(self, request: pb.SignInRequest, arrival: Arrival) -> pb.SignInResponse:
        """Open a session."""
        entered = self._sessions.sign_in(arrival, fields.slug(request.organization), fields.secret(request.secret))
        return pb.SignInResponse(
            organization=entered.member.organization,
            member=fields.member(entered.member),
            session=fields.session(entered),
            revision=entered.revision,
        )

    def WhoAmI(self, request: pb.WhoAmIRequest, call: Call) -> pb.WhoAmIResponse:
        """Say who the caller is."""
        found = self._sessions.who_am_i(call.caller_in(request.organization))
        return pb.WhoAmIResponse(
            organization=fields.organization(found.organization),
            member=None if isinstance(found.holder, Token) else fields.member(found.holder),
            token=fields.token(found.holder) if isinstance(found.holder, Token) else None,
            role=found.holder.role,
            permissions=[fields.permission(item) for item in found.permissions[:MAX_PERMISSIONS]],
            permission_count=len(found.permissions),
            credential=pb.Credential(
                id=found.caller.credential_id,
                kind=fields.KINDS[found.caller.kind],
                expire_time=fields.timestamp(found.caller.expire_time),
            ),
        )

    def SignOut(self, request: pb.SignOutRequest, call: Call) -> pb.SignOutResponse:
        """Kill the presented credential."""
        return pb.SignOutResponse(revision=self._sessions.sign_out(call.attempt(request)))
