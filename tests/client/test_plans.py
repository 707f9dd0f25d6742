"""`Client.plan_resources` and the filter of SQLAlchemy queries by it, against Checks of the same rows."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    create_engine,
    delete,
    insert,
    or_,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import CompileError

from rolecall import sqlalchemy
from rolecall.client import Client
from rolecall.domain import PlanKind, ResourcePlan
from rolecall.errors import InvalidField, PermissionMissing, PlanSize
from support.environment import CI, ROOT
from support.sites import MakeSite, Site

ROWS = 2000 if CI else 400

MODEL_AND_TESTS = ("model.conf", "policy_test.csv")
POLICY = """\
g, ADMIN, CONTRIBUTOR
g, CONTRIBUTOR, VIEWER
g, VIEWER, VIEWERNOSECRETS
p, OWNER, owners, update, allow
p, OWNER, *, *, allow
p, CONTRIBUTOR, authorization, check, allow
p, CONTRIBUTOR, docs, view, allow
p, CONTRIBUTOR, docs/secret, *, deny
p, CONTRIBUTOR, docs/4*, edit, allow
p, CONTRIBUTOR, docs/42, edit, deny
p, VIEWER, docs/public, view, allow
p, VIEWER, docs/eu/*, view, allow
p, VIEWER, docs/eu/a*, view, deny
p, VIEWER, docs/Eu, view, allow
p, VIEWER, docs/4, view, allow
p, VIEWER, docs/é*, view, allow
p, VIEWER, docsother, view, allow
p, VIEWERNOSECRETS, docs/eu, view, deny
p, VIEWERNOSECRETS, docs/b%, view, allow
p, VIEWERNOSECRETS, docs/c_, view, allow
"""
SEGMENTS = ["public", "Public", "secret", "secrets", "eu", "EU", "Eu", "a", "ab", "A", "4", "42", "421", "5", "docs"]
SEGMENTS += ["é", "éa", "É", "e\u0301", "\U0001f600", "b%", "bx", "c_", "cx", "b", " a", "a ", ".", "..", "", "*", "~"]

metadata = MetaData()
documents = Table(
    "documents",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("path", String(2000).with_variant(String(2000, collation="NOCASE"), "sqlite")),
    Column("resource", Text, index=True),
)


@pytest.fixture
def rows() -> list[dict[str, str | int | None]]:
    """Rows with random paths, some of them malformed or missing, always the same."""
    chosen = random.Random(7)
    paths: list[str | None] = [None, "", "x" * 1019, "x" * 1020, "eu/" + "x" * 1016, "eu/" + "x" * 1017]
    paths += ["/".join(chosen.choices(SEGMENTS, k=chosen.choice([1, 1, 2, 3]))) for _ in range(ROWS)]
    kinds = ["docs", "docs", "docs", "docsother", "Docs", "other"]
    return [
        {"number": number, "path": path, "resource": f"{chosen.choice(kinds)}/{path}"}
        for number, path in enumerate(paths)
    ]


@pytest.fixture
def database(database_url: str, rows: list[dict[str, str | int | None]]) -> Iterator[Connection]:
    """A database of an application, with these rows."""
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(insert(documents), rows)
        yield connection
        connection.rollback()
    engine.dispose()


@pytest.fixture
def planned_site(make_site: MakeSite, tmp_path: Path, policy_folder: Path) -> Site:
    """A server with a policy of many forms of patterns."""
    folder = tmp_path / "planned"
    folder.mkdir()
    (folder / "model.conf").write_text((policy_folder / "model.conf").read_text())
    (folder / "policy.csv").write_text(POLICY)
    (folder / "policy_test.csv").write_text("role,resource,action,expected,note\nOWNER,owners,update,allow,\n")
    return make_site(f"sqlite:///{tmp_path}/planned.db", folder=folder)


@pytest.fixture
def client(planned_site: Site) -> Iterator[Client]:
    """A connection as the owner."""
    with Client(planned_site.address, planned_site.tokens["OWNER"]) as client:
        yield client


def allowed_by_checks(client: Client, subject: str, action: str, resources: list[str]) -> set[str]:
    """The resources that Checks allow."""
    found = set()
    for start in range(0, len(resources), 1000):
        part = resources[start : start + 1000]
        results = client.batch_check([(subject, action, resource) for resource in part])
        found |= {resource for resource, result in zip(part, results, strict=True) if result}
    return found


def test_a_filter_finds_exactly_the_rows_that_checks_allow(
    client: Client, database: Connection, rows: list[dict[str, str | int | None]]
) -> None:
    """For every role, for tokens with restrictions, and for both forms of columns, the filter equals Checks."""
    restrictions = [["docs/eu"], ["docs/4*", "docs/secret"], ["docs"], ["*"], ["other"], ["docs/é*", "docs/public"]]
    subjects = [f"role:{role.name}" for role in client.roles()]
    for restriction in restrictions:
        made = client.tokens.create_personal("narrow", restriction=[(pattern, "*") for pattern in restriction])
        subjects.append(f"token:{made.token.id}")
    kinds = set()
    for subject in subjects:
        for action in ("view", "edit", "delete"):
            plan = client.plan_resources(subject, action, "docs")
            kinds.add(plan.kind)

            resources = [str(row["resource"]) for row in rows]
            found = database.scalars(sqlalchemy.filter(select(documents.c.resource), documents.c.resource, plan)).all()
            allowed = allowed_by_checks(client, subject, action, resources)
            assert sorted(found) == sorted(each for each in resources if each in allowed and each.startswith("docs/"))

            paths = [f"docs/{row['path']}" for row in rows if row["path"] is not None]
            query = sqlalchemy.filter(select(documents.c.path), documents.c.path, plan, prefix="docs/")
            allowed = allowed_by_checks(client, subject, action, paths)
            assert sorted(f"docs/{each}" for each in database.scalars(query)) == sorted(
                each for each in paths if each in allowed
            )

            beneath = [f"docs/eu/{row['path']}" for row in rows if row["path"] is not None]
            query = sqlalchemy.filter(select(documents.c.path), documents.c.path, plan, prefix="docs/eu/")
            allowed = allowed_by_checks(client, subject, action, beneath)
            assert sorted(f"docs/eu/{each}" for each in database.scalars(query)) == sorted(
                each for each in beneath if each in allowed
            )

            numbers = [f"docs/{row['number']}" for row in rows]
            query = sqlalchemy.filter(select(documents.c.number), documents.c.number, plan, prefix="docs/")
            allowed = allowed_by_checks(client, subject, action, numbers)
            assert sorted(f"docs/{each}" for each in database.scalars(query)) == sorted(
                each for each in numbers if each in allowed
            )

    assert kinds == set(PlanKind)


def test_a_filter_restricts_any_statement(client: Client, database: Connection) -> None:
    """A DELETE is restricted too, and the condition is combined with others."""
    never = client.plan_resources("role:VIEWER", "delete", "docs")
    always = client.plan_resources("role:OWNER", "delete", "docs")

    assert database.execute(sqlalchemy.filter(delete(documents), documents.c.path, never, prefix="docs/")).rowcount == 0
    assert database.execute(sqlalchemy.filter(delete(documents), documents.c.path, always, prefix="docs/")).rowcount > 9
    mine = or_(documents.c.number == 0, sqlalchemy.condition(documents.c.path, never, prefix="docs/"))
    assert database.scalars(select(documents.c.number).where(mine)).all() == [0]


def test_a_plan_names_role_revision_and_policy(client: Client, planned_site: Site) -> None:
    """A plan says by what it was made; presented tokens are subjects too; one that is not live covers nothing."""
    plan = client.plan_resources("ann@acme.io", "view", "docs")
    presented = client.plan_token_resources(planned_site.tokens["CONTRIBUTOR"], "view", "docs")

    assert plan == ResourcePlan(PlanKind.ALWAYS, "docs", (), (), "OWNER", plan.revision, plan.policy_version)
    assert plan.revision > 0
    assert plan.policy_version == client.policy().policy.policy_version
    assert (presented.kind, presented.role) == (PlanKind.CONDITIONAL, "CONTRIBUTOR")
    assert (presented.include, presented.exclude) == (("docs/*",), ("docs/eu", "docs/secret"))
    assert client.plan_token_resources("garbage", "view", "docs").kind is PlanKind.NEVER
    assert client.plan_resources("nobody@acme.io", "view", "docs").kind is PlanKind.NEVER
    assert client.plan_resources("role:NOBODY", "view", "docs").kind is PlanKind.NEVER
    assert client.plan_resources("role:OWNER", "view", "docs", at_least_revision=plan.revision).kind is PlanKind.ALWAYS


def test_a_malformed_type_is_refused(client: Client) -> None:
    """The error names the field."""
    for wrong in ("", "docs/", "docs/a", "*", "do*", " docs", "..", "x" * 1025, "a\x00"):
        with pytest.raises(InvalidField) as caught:
            client.plan_resources("role:OWNER", "view", wrong)
        assert caught.value.field == "resource_type"
        assert caught.value.message.startswith("resource_type ")
        # The form of a resource is no advice here.
        assert "type/id" not in caught.value.message


def test_only_callers_who_may_check_plan_for_others(planned_site: Site) -> None:
    """A plan for oneself needs no permission."""
    with Client(planned_site.address, planned_site.tokens["VIEWER"]) as viewer:
        assert viewer.plan_resources("viewer@acme.io", "view", "docs").kind is PlanKind.CONDITIONAL
        with pytest.raises(PermissionMissing):
            viewer.plan_resources("ann@acme.io", "view", "docs")


def test_a_plan_of_too_many_patterns_is_refused(make_site: MakeSite, tmp_path: Path, policy_folder: Path) -> None:
    """Of 500 patterns a query is made; of 501, an error says what to do instead."""
    folder = tmp_path / "large"
    folder.mkdir()
    for name in MODEL_AND_TESTS:
        (folder / name).write_text((policy_folder / name).read_text())
    few = "".join(f"p, ADMIN, docs/{number}, view, allow\n" for number in range(250))
    few += "".join(f"p, ADMIN, docs/x{number}-*, view, allow\n" for number in range(250))
    (folder / "policy.csv").write_text(
        (policy_folder / "policy.csv").read_text() + few + "p, OWNER, docs/other, view, allow\n"
    )
    site = make_site(f"sqlite:///{tmp_path}/large.db", folder=folder)
    with Client(site.address, site.tokens["OWNER"]) as client:
        plan = client.plan_resources("role:ADMIN", "view", "docs")
        with pytest.raises(PlanSize, match="BatchCheck") as caught:
            client.plan_resources("role:OWNER", "view", "docs")

    assert len(plan.include) == 500
    assert (caught.value.metadata["size"], caught.value.metadata["maximum"]) == ("501", "500")
    assert caught.value.subject == "organization:acme"
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        connection.execute(insert(documents), [{"number": 7, "path": "x", "resource": "docs/7"}])
        query = sqlalchemy.filter(select(documents.c.number), documents.c.number, plan, prefix="docs/")
        assert connection.scalars(query).all() == [7]
    engine.dispose()


def test_a_filter_refuses_what_it_cannot_compare() -> None:
    """A prefix of another type, a column whose text isn't its value, and an untested database are errors."""
    plan = ResourcePlan(PlanKind.CONDITIONAL, "docs", ("docs/a",))
    path = documents.c.path
    for prefix in ("docs", "documents/", "other/docs/"):
        with pytest.raises(ValueError, match="write `docs/`"):
            sqlalchemy.condition(path, plan, prefix=prefix)
    for kind in (Uuid(), Enum("a", "b")):
        with pytest.raises(TypeError, match="cast it to text"):
            sqlalchemy.condition(Column("other", kind), plan)
    with pytest.raises(CompileError, match="not of mysql"):
        select(path).where(sqlalchemy.condition(path, plan)).compile(dialect=mysql.dialect())


def test_the_documented_example_runs(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block of docs/filtering.md runs as it is."""
    monkeypatch.setenv("ROLECALL_ADDRESS", sqlite_site.address)
    monkeypatch.setenv("ROLECALL_TOKEN", sqlite_site.tokens["OWNER"])
    block = (ROOT / "docs" / "filtering.md").read_text().split("```python\n")[1].split("```")[0]
    exec(block, {"__name__": "example"})

    assert capsys.readouterr().out == "always () ()\n[]\n"
