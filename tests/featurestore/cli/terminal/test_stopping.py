"""Queries that are stopped, pipes that close (faults D1 and D2)."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from featurestore.errors import QueryError
from queries.connection.session import SPILL_PREFIX
from queries.connection.statement import sql
from queries.connection.stopping import stoppable, sweep
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store

ENDLESS = "select count(*) from range(1000000000000)"
DEAF = "select levenshtein(repeat('a', 200000), repeat('b', 200000) || r) from range(8) t(r)"
"""one call of a function that takes minutes: DuckDB looks for an interruption only between calls"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    styles = [f"style {i}" for i in range(10)] * 2
    root = tmp_path_factory.mktemp("stopping") / "store"
    return make_store(root, random_codes(1, samples=20), {"style": styles})


def process(*args, **options):
    command = [sys.executable, "-m", "featurestore", *map(str, args)]
    ready = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ready, **options
    )


def wait_until_it_computes(child):
    """Wait until a command listens for SIGTERM, and two seconds of a processor longer: it has
    imported what it needs, and computes."""
    began = None
    while began is None or seconds_of(child) < began + 2:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
        status = Path(f"/proc/{child.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if began is None and caught >> (signal.SIGTERM - 1) & 1:
            began = seconds_of(child)


def seconds_of(child):
    """The time that the processors have spent on a process, as Linux tells it."""
    user, system = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at its process as Linux shows it")
@pytest.mark.parametrize("statement", [ENDLESS, DEAF])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_query_is_stopped_by_a_signal(store, number, status, statement):
    """D1: `sql` and every other command that computes in DuckDB, also where DuckDB hears nothing;
    what it spilled is removed."""
    child = process("sql", store.root, statement)
    wait_until_it_computes(child)
    left = Path(tempfile.gettempdir(), f"{SPILL_PREFIX}{child.pid}-test")
    left.mkdir()
    child.send_signal(number)
    out, err = child.communicate()
    assert (child.returncode, out) == (status, b"")
    assert (
        err.decode().strip()
        == "Interrupted. What was committed stays; run the same command again to go on."
    )
    assert statement is ENDLESS or not left.exists()


def test_a_query_has_a_time_limit(capsys, store):
    """D1."""
    code, out, err = run(capsys, "sql", store.root, ENDLESS, "--timeout", "0.5")
    assert (code, out) == (1, "")
    assert err == "Error: the query was stopped: it took longer than --timeout 0.5 seconds.\n"
    assert (
        run(capsys, "sql", store.root, "select 1 as x", "--timeout", "60", "--format", "csv")[1]
        == '"x"\n1\n'
    )
    with pytest.raises(QueryError, match=r"longer than --timeout 0\.2 seconds"), stoppable(0.2):
        sql(store, ENDLESS)


def test_the_prompt_ends_with_sigterm_when_it_waits(store):
    """D1."""
    child = process("sql", store.root, stdin=subprocess.PIPE)
    child.stdin.write(b"select 1 as x;\n")
    child.stdin.flush()
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 143


def test_what_a_stopped_query_spilled_is_removed(store):
    """D1: by itself where it can, by the next where the process was killed."""
    with pytest.raises(QueryError), stoppable(1.5):
        sql(
            store, "select hash(range) as h from range(2000000000) order by h", memory_limit="200MB"
        )
    spills = Path(tempfile.gettempdir())
    assert not list(spills.glob(f"{SPILL_PREFIX}{os.getpid()}-*"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, mine = (spills / f"{SPILL_PREFIX}{pid}-test" for pid in (ended.pid, os.getpid()))
    for directory in (dead, mine):
        directory.mkdir()
        (directory / "block").write_bytes(b"x")
    sweep()
    assert (dead.exists(), mine.exists()) == (False, True)
    sweep(of=os.getpid())
    assert not mine.exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_ends_printing_and_not_the_work(store, tmp_path, stream):
    """D2: all ten files are written, whoever stops reading."""
    child = process("export", store.root, "--sae", "s", "--by", "style", "-o", tmp_path / "out")
    with child:
        getattr(child, stream).close()
        (child.stderr if stream == "stdout" else child.stdout).read()
        assert child.wait() == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 10


def test_a_pipe_that_closes_in_the_middle_of_a_long_answer(store):
    """D2: no traceback, and not the status of damage."""
    child = process("sql", store.root, "select range from range(1000000)", "--format", "csv")
    with child:
        assert child.stdout.readline() == b'"range"\n'
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 0)
