"""The environment of the tests: the repository's folder, whether this is CI, and the variables of their database."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The permission matrix: for each resource and action, what each role may.
PERMISSIONS_FILE = ROOT / "tests" / "permissions.csv"
CI = os.environ.get("CI") == "true"
# The variable that holds the URL of the PostgreSQL server of this run.
POSTGRES_URL = "TEST_POSTGRES_URL"
# The variable that holds the URL of PgBouncer before that server.
PGBOUNCER_URL = "TEST_PGBOUNCER_URL"
