"""Policies: which one this process serves, and which one is in force."""

import os
import socket
from dataclasses import dataclass

from rolecall.domain import Caller
from rolecall.errors import StorageUnavailable
from rolecall.policy.reload import InForce, LivePolicy
from rolecall.services.caller_permissions import require
from rolecall.storage import Storage
from rolecall.storage import policies as rows
from rolecall.storage.policies import Activation

__all__ = ["Policies", "PolicyState"]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The policy that this process serves, and the activation in force if that is a later one (`ahead`).

    `problem` says why this process is behind; empty while it catches up. `process` names it, as HOST/PID.
    """

    served: InForce
    ahead: Activation | None
    problem: str
    process: str


class Policies:
    """Use cases of PolicyService."""

    def __init__(self, storage: Storage, live: LivePolicy) -> None:
        self._storage = storage
        self._live = live

    def get(self, caller: Caller) -> PolicyState:
        """Describe the policy. Raises `PermissionMissing`."""
        served = self._live.in_force
        require(served.policy, caller, "view", "policy")
        try:
            in_force = self._storage.read(rows.in_force)
        except StorageUnavailable:
            # An answer without it helps more during an outage than none.
            in_force = None
        ahead = in_force if in_force and in_force.version != served.policy.version else None
        return PolicyState(served, ahead, self._live.follow_problem, f"{socket.gethostname()}/{os.getpid()}")
