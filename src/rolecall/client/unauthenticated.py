"""The client of callers without a token: accept an invitation, sign in, ask for the server's health."""

from pathlib import Path

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from rolecall.client.connection import ClientBase, connect
from rolecall.v1 import invitation_pb2, session_pb2
from rolecall.v1.invitation_pb2_grpc import InvitationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub

__all__ = ["UnauthenticatedClient"]

# HealthCheckResponse.ServingStatus.SERVING.
_SERVING = 1


class UnauthenticatedClient(ClientBase):
    """A connection to a Rolecall server that presents no credential. Threads may share it.

    Each method raises `RolecallError`, and `ValueError` for what no message can hold. Accepting and signing in are not
    retried: a mailed secret works once.
    """

    def __init__(
        self,
        address: str | None = None,
        organization: str | None = None,
        *,
        timeout: float = 5.0,
        ca_file: Path | str | None = None,
        plaintext: bool | None = None,
        server_name: str = "",
    ) -> None:
        """Set up the client as `Client` does, without a token; only `request_sign_in` needs the organization.

        `server_name`: the name that the server's certificate must have, where that isn't the host of the address.
        Raises `ConfigError` if the address is malformed.
        """
        super().__init__(
            connect(
                address,
                "",
                organization,
                timeout=timeout,
                ca_file=ca_file,
                plaintext=plaintext,
                server_name=server_name,
            )
        )
        self._sessions = SessionServiceStub(self._connection.channel)
        self._invitations = InvitationServiceStub(self._connection.channel)
        # On the wire these messages are grpc.health.v1's HealthCheckRequest and HealthCheckResponse, whose package this
        # client doesn't need.
        self._health = self._connection.channel.unary_unary(
            "/grpc.health.v1.Health/Check", StringValue.SerializeToString, Int32Value.FromString
        )

    def accept_invitation(self, secret: str, *, display_name: str = "") -> invitation_pb2.AcceptInvitationResponse:
        """Become a member, with the secret from an invitation's mail; the response holds a session."""
        request = invitation_pb2.AcceptInvitationRequest(secret=secret, display_name=display_name)
        return self._connection.call(self._invitations.AcceptInvitation, request)

    def request_sign_in(self, email: str) -> None:
        """Have a sign-in link mailed to the address, if a member of this client's organization has it."""
        request = session_pb2.RequestSignInRequest(organization=self._connection.organization, email=email)
        self._connection.call(self._sessions.RequestSignIn, request)

    def sign_in(self, secret: str) -> session_pb2.SignInResponse:
        """Open a session with the secret from a sign-in mail."""
        request = session_pb2.SignInRequest(secret=secret)
        return self._connection.call(self._sessions.SignIn, request)

    def is_serving(self, service: str = "rolecall.ready") -> bool:
        """Whether the server is ready to answer Checks; with an empty name, whether it runs and isn't stopping."""
        return self._connection.call(self._health, StringValue(value=service)).value == _SERVING
