"""Build of a policy that may go live from its files: parse, lint, index, test, compare with Casbin."""

from dataclasses import dataclass
from pathlib import Path

from rolecall.policy import lint, parser
from rolecall.policy.comparison_key import comparison_key
from rolecall.policy.index import Policy
from rolecall.policy.parsed import NO_FILES, TEST_FILE, Finding, ParsedPolicy, PolicyFiles, Severity

__all__ = ["Build", "build", "read_and_index"]


@dataclass(frozen=True, slots=True)
class Build:
    """Result of building a policy from `files`: a policy only if no finding is an error.

    `tests` counts the rows of policy_test.csv, `comparisons` the answers that were compared with Casbin's, under
    `comparison_key`; 0 where the caller knew that key.
    """

    policy: Policy | None
    findings: tuple[Finding, ...]
    files: PolicyFiles = NO_FILES
    tests: int = 0
    comparisons: int = 0
    comparison_key: str = ""

    @property
    def version(self) -> str:
        """The version of the files; empty where they can't be read."""
        return self.files.version

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the policy from going live."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


def read_and_index(source: Path | PolicyFiles) -> tuple[ParsedPolicy, Policy | None]:
    """Parse a folder or its texts, and index the policy if that is possible, without testing it."""
    parsed = parser.read(source) if isinstance(source, Path) else parser.parse(source, ParsedPolicy())
    blocking = [finding for finding in parsed.errors if finding.file != TEST_FILE]
    if not blocking:
        lint.check_roles(parsed)
        lint.check_conditions(parsed)
        blocking = [finding for finding in parsed.errors if finding.file != TEST_FILE]
    if blocking:
        return parsed, None
    policy = Policy(parsed.rules, parsed.inheritances, parsed.files.version, parsed.conditions)
    lint.check_grants(parsed, policy)
    return parsed, policy


def build(source: Path | PolicyFiles, casbin_seconds: float | None = 2.0, known_key: str = "") -> Build:
    """Build the policy of a folder or its texts in this process.

    It is checked against Casbin for `casbin_seconds` (None: to the end), unless its comparison has the `known_key`.
    """
    parsed, policy = read_and_index(source)
    comparisons, key = 0, ""
    if policy is not None:
        lint.check_test_cases(parsed, policy)
        if not parsed.errors:
            key = comparison_key(parsed.files)
            if not key or key != known_key:
                from rolecall.policy import casbin_check  # noqa: PLC0415 - importing Casbin takes longer than linting

                comparisons = casbin_check.check_against_casbin(parsed, policy, casbin_seconds)
    served = None if parsed.errors else policy
    return Build(served, tuple(parsed.findings), parsed.files, len(parsed.cases), comparisons, key)
