"""SessionService."""

from rolecall.domain import Token
from rolecall.errors import InvalidField
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.sessions import Sessions
from rolecall.services.unit_of_work import UnauthenticatedCall
from rolecall.v1 import session_pb2 as pb

__all__ = ["SessionService"]

MAX_PERMISSIONS = 1000


class SessionService:
    """Signs people in and out, and describes the presented credential."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def RequestSignIn(self, request: pb.RequestSignInRequest, call: UnauthenticatedCall) -> pb.RequestSignInResponse:
        """Enqueue a mail with a sign-in link, if the address is a member's."""
        if not request.organization:
            raise InvalidField(
                "organization is not set: say where you want to sign in (--organization, ROLECALL_ORGANIZATION).",
                field="organization",
            )
        self._sessions.request_sign_in(call, requests.slug(request.organization), request.email)
        return pb.RequestSignInResponse()

    def SignIn(self, request: pb.SignInRequest, call: UnauthenticatedCall) -> pb.SignInResponse:
        """Open a session."""
        signed_in = self._sessions.sign_in(call, requests.slug(request.organization), requests.secret(request.secret))
        return pb.SignInResponse(
            organization=signed_in.member.organization,
            member=responses.member(signed_in.member),
            session=responses.session(signed_in),
            revision=signed_in.revision,
        )

    def WhoAmI(self, request: pb.WhoAmIRequest, call: Call) -> pb.WhoAmIResponse:
        """Describe the caller."""
        answer = self._sessions.who_am_i(call.caller_in(request.organization))
        return pb.WhoAmIResponse(
            organization=responses.organization(answer.organization),
            member=None if isinstance(answer.holder, Token) else responses.member(answer.holder),
            token=responses.token(answer.holder) if isinstance(answer.holder, Token) else None,
            role=answer.holder.role,
            permissions=[responses.permission(item) for item in answer.permissions[:MAX_PERMISSIONS]],
            permission_count=len(answer.permissions),
            credential=pb.Credential(
                id=answer.caller.credential_id,
                kind=responses.KINDS[answer.caller.kind],
                expire_time=responses.timestamp(answer.caller.expire_time),
            ),
        )

    def SignOut(self, request: pb.SignOutRequest, call: Call) -> pb.SignOutResponse:
        """Delete the presented credential."""
        return pb.SignOutResponse(revision=self._sessions.sign_out(call.change_request(request)))
