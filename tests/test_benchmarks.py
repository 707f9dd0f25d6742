"""Servers and load generators of the benchmarks, which are otherwise run rarely."""

import shutil
import subprocess
import sys

import pytest

from support.environment import CI, ROOT

PROGRAM = """
import sys, tempfile
from pathlib import Path
from load import Flow, Serving
from sites import check_requests, create_site

with tempfile.TemporaryDirectory() as name:
    site = create_site(Path(name), 20)
    with Serving(sys.argv[1], site.folder, site.token) as serving:
        requests = check_requests(20)
        if sys.argv[2] == "paced":
            measured = serving.pace(0.5, checks=Flow(requests, 200.0, 2))["checks"]
        else:
            measured = serving.load(requests[0], 0.5, 2, 1)
        print(len(measured.latencies), serving.counts()["answered"])
"""


@pytest.mark.parametrize("transport", ["polling", "standard"])
@pytest.mark.parametrize("load", ["paced", "h2load"])
def test_load_generators_measure_a_server(transport: str, load: str) -> None:
    """Each load generator gets answers from a server of each transport, and the server counts them."""
    if load == "h2load" and not CI and not shutil.which("h2load"):
        pytest.skip("h2load is not installed")
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, transport, load],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    measured, answered = (float(number) for number in finished.stdout.split())
    assert measured > 10
    assert answered >= measured
