"""Comparisons with Casbin that needn't be repeated, and all that makes one be repeated."""

import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import update

from rolecall.limits import Limits
from rolecall.policy import Build, PolicyFiles, build, build_in_subprocess, comparison_key, parser, reload
from rolecall.policy.parsed import ParsedPolicy
from rolecall.policy.reload import LivePolicy, load_in_force
from rolecall.storage import Storage, tables
from rolecall.storage import policies as rows
from support.policy_folders import SHIPPED

QUICK = Limits(casbin_seconds=0.05)


@pytest.fixture
def files() -> PolicyFiles:
    """The texts of the shipped policy."""
    return parser.read_files(SHIPPED, ParsedPolicy())


@pytest.fixture
def _no_code_cached() -> Iterator[None]:
    """Read the deciding code anew in this test and after it."""
    comparison_key._code.cache_clear()
    yield
    comparison_key._code.cache_clear()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Build]:
    """The policies that servers of this process build from now on."""
    made: list[Build] = []

    def recorded(source: Path | PolicyFiles, seconds: float, known_key: str) -> Build:
        made.append(build_in_subprocess(source, seconds, known_key))
        return made[-1]

    monkeypatch.setattr(reload, "build_in_subprocess", recorded)
    monkeypatch.setattr(reload, "build", recorded)
    return made


def key_in(storage: Storage, version: str) -> str:
    """The key under which the database knows a comparison."""
    return storage.read(lambda tx: rows.comparison_key(tx, version))


def set_key(storage: Storage, key: str) -> None:
    """Let the policies have been compared under another key, as by another version of Casbin."""
    storage.write(lambda tx: tx.connection.execute(update(tables.policies).values(comparison_key=key)).rowcount)


# What a comparison depends on


def test_key_depends_on_the_model_and_the_rules_alone(files: PolicyFiles) -> None:
    """Another model or another rule is another comparison; other tests are the same one."""
    key = comparison_key.comparison_key(files)
    others = [
        files._replace(model=files.model + "\n"),
        files._replace(policy=files.policy + "#\n"),
        # The same characters, divided otherwise.
        files._replace(model=files.model + files.policy[:1], policy=files.policy[1:]),
    ]

    keys = {key, *map(comparison_key.comparison_key, others)}

    assert len(keys) == 4
    assert comparison_key.comparison_key(files._replace(tests="")) == key
    assert len(key) == 64


@pytest.mark.usefixtures("_no_code_cached")
def test_key_depends_on_the_code_that_decides(
    files: PolicyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any change of Casbin, of what evaluates its matchers, of Rolecall's own index, or of Python needs a new one."""
    keys = {comparison_key.comparison_key(files)}
    for number, module in enumerate(map(import_module, ("casbin", "simpleeval", "rolecall.policy"))):
        source = Path(str(module.__file__))
        copied = tmp_path / f"copy{number}"
        if source.name == "__init__.py":
            shutil.copytree(source.parent, copied, ignore=shutil.ignore_patterns("__pycache__", "shipped"))
            changed = max(copied.rglob("*.py"))
        else:
            changed = Path(shutil.copy(source, copied.with_suffix(".py")))
        packages = tuple(copied.name if name == module.__name__ else name for name in comparison_key._PACKAGES)
        assert packages != comparison_key._PACKAGES
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            patch.setattr(comparison_key, "_PACKAGES", packages)
            comparison_key._code.cache_clear()
            before = comparison_key.comparison_key(files)
            changed.write_text(changed.read_text() + "#\n")
            comparison_key._code.cache_clear()
            keys |= {before, comparison_key.comparison_key(files)}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.99")
        comparison_key._code.cache_clear()
        keys.add(comparison_key.comparison_key(files))

    assert "" not in keys
    assert len(keys) == 1 + 2 * 3 + 1


@pytest.mark.usefixtures("_no_code_cached")
@pytest.mark.parametrize("package", ["no_such_package", "sys", "_struct"])
def test_code_that_can_not_be_read_is_compared_always(
    files: PolicyFiles, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Without the source of all that decides there is no key, and no key is known, an empty one neither."""
    monkeypatch.setattr(comparison_key, "_PACKAGES", (*comparison_key._PACKAGES, package))

    result = build(SHIPPED, 0.0, known_key="")

    assert comparison_key.comparison_key(files) == result.comparison_key == ""
    assert result.comparisons > 0


# Builds


def test_known_comparison_is_not_repeated(files: PolicyFiles) -> None:
    """With the key of the comparison, a build answers the same and asks Casbin nothing, in a child process too."""
    first = build(SHIPPED, 0.05)

    again = build(SHIPPED, 0.05, known_key=first.comparison_key)
    aside = build_in_subprocess(SHIPPED, 0.05, first.comparison_key)
    others = build(SHIPPED, 0.05, known_key=comparison_key.comparison_key(files._replace(policy=files.policy + "#\n")))

    assert first.comparisons > 0
    assert again.comparisons == aside.comparisons == 0
    assert again.policy is not None
    assert aside.policy is not None
    assert again.comparison_key == aside.comparison_key == first.comparison_key
    assert others.comparisons > 0


def test_known_comparison_spares_no_other_check(policy_folder: Path) -> None:
    """A policy_test.csv that fails keeps a known policy from being served."""
    key = build(policy_folder, 0.05).comparison_key
    with (policy_folder / "policy_test.csv").open("a", encoding="utf-8") as file:
        file.write("VIEWER,secrets,view,deny,\n")

    result = build(policy_folder, 0.05, known_key=key)

    assert result.policy is None
    assert len(result.errors) == 1


# Servers


def test_start_with_a_known_policy_compares_nothing(storage: Storage, policy_folder: Path, builds: list[Build]) -> None:
    """The first start compares the policy with Casbin, and the database keeps that for the next ones."""
    first = LivePolicy(policy_folder, storage, QUICK)
    again = LivePolicy(policy_folder, storage, QUICK)
    loaded = load_in_force(storage)

    assert [bool(each.comparisons) for each in builds] == [True, False, False]
    assert first.in_force.policy.version == again.in_force.policy.version
    assert loaded is not None
    stored = storage.read(lambda tx: rows.get(tx, first.in_force.policy.version))
    assert stored is not None
    assert (stored.comparisons, stored.comparison_key) == (builds[0].comparisons, builds[0].comparison_key)


def test_start_with_another_casbin_compares_again_once(
    storage: Storage, policy_folder: Path, builds: list[Build]
) -> None:
    """A comparison that was made by other code counts for nothing, and is replaced."""
    LivePolicy(policy_folder, storage, QUICK)
    version, key = builds[0].version, builds[0].comparison_key
    set_key(storage, "0" * 64)

    LivePolicy(policy_folder, storage, QUICK)
    replaced = key_in(storage, version)
    LivePolicy(policy_folder, storage, QUICK)

    assert [bool(each.comparisons) for each in builds] == [True, True, False]
    assert replaced == key


def test_policy_that_another_server_activated_is_compared_where_its_code_differs(
    storage: Storage, policy_folder: Path, builds: list[Build]
) -> None:
    """A server that follows trusts a comparison only if it would have made the same one itself."""
    LivePolicy(policy_folder, storage, QUICK)
    set_key(storage, "0" * 64)

    policy = load_in_force(storage)
    load_in_force(storage)

    assert policy is not None
    assert [bool(each.comparisons) for each in builds] == [True, True, False]


def test_files_that_change_while_they_are_read_are_compared(
    storage: Storage, policy_folder: Path, builds: list[Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known comparison is of the files that are built, not of those that the server saw before."""
    LivePolicy(policy_folder, storage, QUICK)
    before = parser.read_files(policy_folder, ParsedPolicy())
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.write("p, VIEWER, reports, view, allow\n")
    with monkeypatch.context() as patch:
        patch.setattr(parser, "read_files", lambda _folder, _parsed: before)
        live = LivePolicy(policy_folder, storage, QUICK)

    assert live.in_force.policy.version != before.version
    assert [bool(each.comparisons) for each in builds] == [True, True]
