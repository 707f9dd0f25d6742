"""The policy in force: the same for all processes of a database, and replaced while they serve.

Which version is in force is a row of the database, so that no process decides it alone. A process that sees an edit of
its folder builds the new policy and activates it, in a transaction that excludes every change of an organization; all
processes follow through the change feed. A change is authorized by the version that is in force in its own transaction
(`LivePolicy.policy_in`). A policy that fails a check is not activated: the last good one stays in force.
"""

import math
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from rolecall.background import PeriodicThread
from rolecall.domain import now, rfc3339
from rolecall.errors import StorageUnavailable, WriteConflict
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy import (
    OWNERS,
    POLICY_FILE,
    Build,
    Finding,
    Policy,
    PolicyError,
    PolicyFiles,
    Severity,
    build,
    build_in_subprocess,
    parser,
)
from rolecall.policy.comparison_key import comparison_key
from rolecall.policy.parsed import FILE_NAMES, NO_FILES, ParsedPolicy
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import members as member_rows
from rolecall.storage import policies as rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.policies import Activation, ProcessBehind, StoredPolicy

__all__ = ["InForce", "LivePolicy", "PolicyChanged", "Refusal", "find_conflicts", "load_in_force", "stored"]

# How often the folder is polled, by four `stat` calls. With SETTLE_SECONDS and a build, an edit is in force within a
# second. Polling sees more than inotify does: a replaced folder, and a change on a network mount.
POLL_SECONDS = 0.2
# How long the folder must stay unchanged before it is read: several files saved in a burst are one change.
SETTLE_SECONDS = 0.1
MAX_SETTLE_SECONDS = 1.0
# Maximum seconds of the check against Casbin while an admin waits for an edit to take effect.
RELOAD_CASBIN_SECONDS = 0.3
# How often a policy is tried again that the database kept out: it didn't answer, or its members didn't fit the policy.
RETRY_SECONDS = 2.0

_UNBUILDABLE = "This server can't build the policy in force; its log says why."
# Maximum characters of the findings in the reason that GetPolicy shows for a process that is behind.
MAX_PROBLEM = 500
_log = structlog.get_logger("rolecall.policy")

# Size, times, inode and device of each file, which differ after any change, even of its mode; None for a file that
# can't be read.
_Fingerprint = tuple[tuple[int, int, int, int, int] | None, ...]


class PolicyChanged(Exception):
    """The policy that is in force in the transaction is not the one that this process serves."""


class _Unbuildable(StorageUnavailable):
    """The policy in force can't be built here, for the findings, as where a later release activated it."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.findings = [str(finding) for finding in findings[:5]]
        why = " ".join(self.findings)[:MAX_PROBLEM]
        super().__init__(f"This version of Rolecall can't build the policy in force: {why}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """State of the folder that is not in force, since the time `since`, and why."""

    version: str
    since: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """The served policy, its files, its activation, its warnings, and why the folder's present state isn't in force.

    `load_time` is when this process began to serve it.
    """

    policy: Policy
    files: PolicyFiles
    activation: Activation
    warnings: tuple[Finding, ...] = ()
    refusal: Refusal | None = None
    load_time: int = field(default_factory=now)


class LivePolicy:
    """The policy in force, in one reference, so that every call sees one version completely. Threads may share it."""

    def __init__(self, folder: Path, storage: Storage, limits: Limits = DEFAULT_LIMITS) -> None:
        """Activate the folder's policy; where it may not be, serve the one in force and note the refusal.

        Raises `PolicyError` where there is neither, `StorageUnavailable`, `WriteConflict`.
        """
        self._folder = folder
        self._files = [str(folder / name) for name in FILE_NAMES]
        self._storage = storage
        self._activator = socket.gethostname()
        self.process = f"{self._activator}/{os.getpid()}"
        """Name of this process, as HOST/PID."""
        # Held while a policy is built for this process: at most one replaces the policy in force at a time.
        self._lock = threading.Lock()
        self._seen = self._fingerprint()
        self._ownerless: list[str] = []
        self._candidate: Build | None = None
        # Sequence number of the activation in force when the candidate was first kept out.
        self._kept_out_at = 0
        self._retry_at = math.inf
        self._forced = threading.Event()
        self._behind = threading.Event()
        self._problem = ""
        # Until then a policy in force that couldn't be built here is not tried again.
        self._catch_up_at = 0.0
        # Whether the database says that this process is behind, and when that is written again.
        self._is_reported = False
        self._report_at = 0.0
        self._in_force = self._start(limits.casbin_seconds)
        self._watch = PeriodicThread("policy-watch", self._poll, interval=POLL_SECONDS)

    @property
    def in_force(self) -> InForce:
        """The policy that is served now."""
        return self._in_force

    @property
    def problem(self) -> str:
        """Why this process can't serve the policy in force, but serves an earlier one; empty where it is not behind."""
        return self._problem

    def policy_in(self, tx: Transaction) -> Policy:
        """Return the policy in force in the transaction. Raises `PolicyChanged` where it isn't the served one."""
        policy = self._in_force.policy
        if rows.version_in_force(tx) != policy.version:
            raise PolicyChanged
        return policy

    def catch_up(self) -> None:
        """Serve the policy in force now; blocks while it is built. Raises `StorageUnavailable`."""
        with self._lock:
            before = self._in_force
            activation = self._storage.read(rows.in_force) or self._activate_first(before)
            if activation == before.activation:
                self._serve(before)
                return
            if activation.version == before.policy.version:
                self._serve(replace(before, activation=activation, refusal=self._difference(activation)))
            else:
                if time.monotonic() < self._catch_up_at:
                    raise StorageUnavailable(_UNBUILDABLE)
                # Each attempt holds up the calls that wait for the lock.
                self._catch_up_at = time.monotonic() + RETRY_SECONDS
                try:
                    self._serve(self._stored(activation, self._difference(activation)))
                except _Unbuildable as error:
                    self._note_problem(activation, error)
                    # The caller may not see the policy.
                    raise StorageUnavailable(_UNBUILDABLE) from error
            _log.info("policy in force", **_logged(activation), replaced=before.policy.version, followed=True)

    def _serve(self, state: InForce) -> None:
        """Serve a policy that is in force: this process isn't behind any more."""
        self._in_force, self._problem, self._catch_up_at = state, "", 0.0

    def _note_problem(self, activation: Activation, error: _Unbuildable) -> None:
        if error.message != self._problem:
            served = _logged(self._in_force.activation, "served")
            version = activation.version
            _log.error("policy in force can't be followed", **served, in_force=version, findings=error.findings)
        self._problem = error.message

    def _activate_first(self, served: InForce) -> Activation:
        """Activate the served policy in a database that was restored to a state without any."""

        def work(tx: Transaction) -> Activation:
            first = _stored(served.files, 0, "")
            return rows.in_force(tx) or rows.activate(tx, first, self._activator, now())

        return self._storage.exclusive(work)

    def note_sequence(self, sequence: int) -> None:
        """Note the sequence number of the activation in force; the watch catches up. 0: it is unknown. Never blocks."""
        if sequence != self._in_force.activation.sequence:
            self._behind.set()
            self._watch.wake()

    def start(self) -> None:
        """Start to watch the folder."""
        self._watch.start()

    def stop(self) -> None:
        """End the watch. A reload that is running has a second to end; then its thread is left behind."""
        self._watch.stop()

    def wake(self) -> None:
        """Read the folder now, changed or not. May be called from a signal handler."""
        self._forced.set()
        self._watch.wake()

    def _start(self, casbin_seconds: float) -> InForce:
        result = _build_first(self._folder, self._storage, casbin_seconds)
        findings = result.errors
        if result.policy is not None:
            activation, findings = self._activate(result, is_start=True)
            if activation is not None:
                return InForce(result.policy, result.files, activation, _warnings(result))
            self._candidate, self._retry_at = result, 0.0
        present = self._storage.read(rows.in_force)
        if present is None:
            raise PolicyError(self._folder, findings)
        self._log_refusal(present, findings)
        return self._stored(present, Refusal(result.version, now(), findings))

    def _poll(self) -> None:
        """Catch up with the policy in force; read the folder if it has changed; try a kept-out candidate again."""
        behind, forced = self._behind.is_set(), self._forced.is_set()
        self._behind.clear()
        self._forced.clear()
        try:
            if behind:
                self._follow()
            self._report()
            if forced or self._fingerprint() != self._seen:
                self._settle()
                self._candidate = self._build()
                self._kept_out_at = 0
            elif time.monotonic() < self._retry_at:
                return
            if self._candidate:
                self._try(self._candidate)
        except Exception:  # noqa: BLE001 - the watch survives any defect: the last good policy stays
            _log.exception("policy reload failed", folder=str(self._folder))
        self._retry_at = time.monotonic() + RETRY_SECONDS if self._candidate else math.inf

    def _follow(self) -> None:
        """Catch up, or try again in the next round where the database or the build fails."""
        try:
            self.catch_up()
        except (StorageUnavailable, WriteConflict):
            self._behind.set()

    def _report(self) -> None:
        """Say in the database that this process is behind, again and again, and take it back once it has caught up."""
        problem = self._problem
        if not (problem or self._is_reported) or time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + RETRY_SECONDS
        behind = ProcessBehind(self.process, self._in_force.policy.version, problem, now())
        # Tried again where it fails: GetPolicy ignores reports that aren't renewed.
        with suppress(StorageUnavailable, WriteConflict):
            self._storage.write(lambda tx: rows.report(tx, behind) if problem else rows.withdraw(tx, self.process))
            self._is_reported = bool(problem)
            if not problem:
                self._report_at = 0.0

    def _settle(self) -> None:
        """Wait until the folder stays unchanged, at most MAX_SETTLE_SECONDS, so that endless saves can't block it."""
        deadline = time.monotonic() + MAX_SETTLE_SECONDS
        while True:
            self._seen = self._fingerprint()
            is_stopping = self._watch.stopping.wait(SETTLE_SECONDS)
            if is_stopping or self._fingerprint() == self._seen or time.monotonic() > deadline:
                return

    def _build(self) -> Build | None:
        """Build the folder's policy. None if its files have errors, which are noted as the refusal."""
        result = _build_folder(self._folder, self._storage, RELOAD_CASBIN_SECONDS)
        if result.policy is None:
            # A thread that catches up must not lose what it sets.
            with self._lock:
                self._refuse(result.version, result.errors)
            return None
        return result

    def _try(self, result: Build) -> None:
        """Activate the candidate, or note why the database keeps it out; it stays the candidate then."""
        assert result.policy is not None  # noqa: S101 - for the type checker: `_build` returns no other
        with self._lock:
            activation, conflicts = self._activate(result)
            if activation is None:
                self._refuse(result.version, conflicts)
                return
            self._candidate = None
            self._serve(InForce(result.policy, result.files, activation, _warnings(result)))

    def _activate(self, result: Build, *, is_start: bool = False) -> tuple[Activation | None, tuple[Finding, ...]]:
        """Put the policy in force for all processes; return its activation, or None and what keeps it out.

        A policy that is kept out stays the candidate, unless another one is activated meanwhile: that is newer.
        """
        assert result.policy is not None  # noqa: S101 - for the type checker
        policy = result.policy
        new = stored(result)
        before: StoredPolicy | None = None

        def attempt(tx: Transaction, *, locked: bool) -> Activation | tuple[Finding, ...]:
            nonlocal before
            present = rows.in_force(tx)
            before = rows.get(tx, present.version) if present else None
            if present and before and (before.version, before.tests) == (new.version, new.tests):
                return present
            if present and self._kept_out_at not in (0, present.sequence):
                message = f"The policy {present.version} was activated since, by {present.activator}."
                return (_finding(message, "Save the file again to activate this one instead."),)
            conflicts = self._conflicts(tx, policy)
            if conflicts and present:
                self._kept_out_at = present.sequence
                return conflicts
            if not locked:
                return ()
            if conflicts:
                # The first policy of a database is served whatever roles the members have: there is no other.
                _log.error("members' roles don't fit the first policy", findings=[str(each) for each in conflicts[:5]])
            return rows.activate(tx, new, self._activator, now())

        try:
            # Without the lock first: a candidate that is kept out for long must not delay changes.
            outcome = self._storage.read(lambda tx: attempt(tx, locked=False))
            if outcome == ():
                outcome = self._storage.exclusive(lambda tx: attempt(tx, locked=True))
        except (StorageUnavailable, WriteConflict):
            return None, (_finding("The roles in use can't be read from the database.", "Wait: it is retried."),)
        if isinstance(outcome, tuple):
            return None, outcome
        activation = outcome
        is_new = before is not None and before.version != result.version
        if is_new or not is_start:
            # A start that replaces a policy may undo what an operator or another folder has put in force.
            log = _log.warning if is_start else _log.info
            log(
                "policy in force",
                **_logged(activation),
                replaced=before.version if before and is_new else "",
                files_changed=_files(before).differing(result.files) if before else [],
                rules=len(policy.rules),
                comparisons=result.comparisons,
            )
        return activation, ()

    def _stored(self, activation: Activation, refusal: Refusal | None) -> InForce:
        """Build the policy of an activation from the database. Raises `StorageUnavailable`."""
        result = _build_stored(self._storage, activation)
        assert result.policy is not None  # noqa: S101 - for the type checker
        return InForce(result.policy, result.files, activation, _warnings(result), refusal)

    def _difference(self, activation: Activation) -> Refusal | None:
        """Return how the folder differs from the policy of an activation; None where it doesn't."""
        files = parser.read_files(self._folder, ParsedPolicy())
        kept = self._storage.read(lambda tx: rows.get(tx, activation.version))
        changed = files.differing(_files(kept)) if kept else []
        if not changed:
            return None
        message = (
            f"The policy in force was activated by {activation.activator}; this server's folder differs from it in"
            f" {', '.join(changed)}."
        )
        finding = _finding(message, "Give all servers of a database the same folder.")
        _log.error("policy in force differs from the folder", folder=str(self._folder), files=changed)
        return Refusal(files.version, now(), (finding,))

    def _refuse(self, version: str, findings: tuple[Finding, ...]) -> None:
        before = self._in_force
        if before.refusal and (before.refusal.version, before.refusal.findings) == (version, findings):
            return
        refusal = Refusal(version, now(), findings)
        self._in_force = replace(before, refusal=refusal)
        self._log_refusal(before.activation, findings)

    def _log_refusal(self, served: Activation, findings: tuple[Finding, ...]) -> None:
        _log.error(
            "policy refused, the last good one stays in force",
            folder=str(self._folder),
            **_logged(served, "in_force"),
            findings=[str(finding) for finding in findings[:5]],
            finding_count=len(findings),
        )

    def _conflicts(self, tx: Transaction, policy: Policy) -> tuple[Finding, ...]:
        """Return why the policy doesn't fit the members and tokens, and log organizations without an owner."""
        findings, ownerless = find_conflicts(tx, policy)
        # Only the log names organizations: callers who may see the policy must not learn of other organizations.
        if ownerless and ownerless != self._ownerless:
            _log.error("policy leaves organizations without an owner", organizations=ownerless)
        self._ownerless = ownerless
        return findings

    def _fingerprint(self) -> _Fingerprint:
        states: list[tuple[int, int, int, int, int] | None] = []
        for file in self._files:
            try:
                stat = os.stat(file)  # noqa: PTH116 - `Path.stat` costs twice as much
            except OSError:
                states.append(None)
            else:
                states.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev))
        return tuple(states)


def find_conflicts(tx: Transaction, policy: Policy) -> tuple[tuple[Finding, ...], list[str]]:
    """Find why the policy doesn't fit the members and tokens: missing roles, organizations without an owner.

    Returns the findings, and up to five of those organizations.
    """
    ownerless = member_rows.organizations_without(tx, policy.owner_roles, limit=5)
    held_by_tokens = token_rows.roles_held(tx, now())
    assigned = assignment_rows.roles_held(tx, now())
    findings = [
        _finding(
            f"Members or tokens have the role `{role}`, which this policy doesn't define.",
            f"Keep `{role}` until no member or token has it: `rolecall members move {role} ROLE` gives the members of"
            f" one organization another role, the operator's `rolecall operator policy activate --move {role}=ROLE` all"
            " holders.",
        )
        for role in sorted((member_rows.roles_held(tx) | held_by_tokens) - set(policy.roles))
    ]
    findings += [
        _finding(
            f"An organization token has the role `{role}`, which in this policy may `owners update`.",
            f"Delete the tokens with the role `{role}` first, or grant that permission to another role.",
        )
        for role in sorted(held_by_tokens & set(policy.owner_roles))
    ]
    findings += [
        _finding(
            f"{assigned[role]} role assignments have the role `{role}`, which this policy doesn't define.",
            f"Keep `{role}` until nobody is assigned it: see `rolecall assignments list --role {role}` in each"
            f" organization; the operator's `rolecall operator policy activate --move {role}=ROLE` moves all of them.",
        )
        for role in sorted(set(assigned) - set(policy.roles))
    ]
    findings += [
        _finding(
            f"{assigned[role]} role assignments have the role `{role}`, which in this policy has a rule on"
            " `owners update`.",
            f"Delete the assignments of `{role}` first, or write that rule for another role.",
        )
        for role in sorted(set(assigned) & policy.roles_ruled_on(*OWNERS))
    ]
    if ownerless:
        findings.append(
            _finding(
                "An organization would have no member who may `owners update`; the server's log names it.",
                "Grant that permission to a role that a member of it has.",
            )
        )
    return tuple(findings), ownerless


def load_in_force(storage: Storage) -> Policy | None:
    """Return the policy in force; None where none was activated yet. Raises `StorageUnavailable`."""
    activation = storage.read(rows.in_force)
    return None if activation is None else _build_stored(storage, activation).policy


def _build_stored(storage: Storage, activation: Activation) -> Build:
    """Build the policy of an activation from the database. Raises `StorageUnavailable`, `_Unbuildable`."""
    kept = storage.read(lambda tx: rows.get(tx, activation.version))
    known_key = kept.comparison_key if kept else ""
    result = build_in_subprocess(_files(kept), RELOAD_CASBIN_SECONDS, known_key)
    _note_comparison(storage, result)
    if result.policy is None:
        raise _Unbuildable(result.errors)
    return result


def _logged(activation: Activation, version_as: str = "policy_version") -> dict[str, str]:
    """Return the fields of an activation for the log: the version, who activated it, and when."""
    return {
        version_as: activation.version,
        "activator": activation.activator,
        "activate_time": rfc3339(activation.time),
    }


def _build_first(folder: Path, storage: Storage, casbin_seconds: float) -> Build:
    """Build the policy of a folder as `_build_folder` does; a known one here, as no call is served yet."""
    files = parser.read_files(folder, ParsedPolicy())
    known_key = _known_key(storage, files.version)
    if known_key and known_key == comparison_key(files):
        return build(folder, casbin_seconds, known_key)
    return _build_folder(folder, storage, casbin_seconds)


def _build_folder(folder: Path, storage: Storage, casbin_seconds: float) -> Build:
    """Build the policy of a folder; compare it with Casbin unless the database has the outcome."""
    version = parser.read_files(folder, ParsedPolicy()).version
    result = build_in_subprocess(folder, casbin_seconds, _known_key(storage, version))
    _note_comparison(storage, result)
    return result


def _known_key(storage: Storage, version: str) -> str:
    """Return the key of the policy's comparison in the database; empty where there is none, or no database."""
    try:
        return storage.read(lambda tx: rows.comparison_key(tx, version))
    except StorageUnavailable:
        return ""


def _note_comparison(storage: Storage, result: Build) -> None:
    """Store the comparison of a policy that was activated before, as with another version of Casbin."""
    if result.policy is not None and result.comparisons:
        # It is compared again at the next start where that fails.
        with suppress(StorageUnavailable, WriteConflict):
            storage.write(
                lambda tx: rows.note_comparison(tx, result.version, result.comparisons, result.comparison_key)
            )


def stored(result: Build) -> StoredPolicy:
    """Return a build as the database keeps it."""
    return _stored(result.files, result.comparisons, result.comparison_key)


def _stored(files: PolicyFiles, comparisons: int, key: str) -> StoredPolicy:
    return StoredPolicy(
        files.version, files.model, files.policy, files.tests, comparisons, key, conditions=files.conditions
    )


def _files(kept: StoredPolicy | None) -> PolicyFiles:
    return PolicyFiles(kept.model, kept.policy, kept.tests, kept.conditions) if kept else NO_FILES


def _warnings(result: Build) -> tuple[Finding, ...]:
    return tuple(finding for finding in result.findings if finding.severity is Severity.WARNING)


def _finding(message: str, fix: str) -> Finding:
    """Make a finding about the policy as a whole."""
    return Finding(POLICY_FILE, 0, 0, message, fix)
