import importlib.metadata
import shutil
from types import SimpleNamespace

import pytest

from featurestore import doctor
from featurestore.errors import DiskError
from featurestore.format import durable
from tests.builders.cli import run


def state(findings):
    return {one.what: (one.state, one.found, one.mend) for one in findings if one.state != "ok"}


@pytest.fixture
def without(monkeypatch):
    """Take a distribution away, or give it another version."""
    real = importlib.metadata.version

    def take(name, version=None):
        def found(asked):
            if asked == name and version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version if asked == name else real(asked)

        monkeypatch.setattr(importlib.metadata, "version", found)

    return take


def test_a_whole_installation_lacks_nothing(capsys, tmp_path):
    status, out, err = run(capsys, "doctor", "--store", tmp_path / "new")
    assert (status, err) == (0, "")
    assert out.endswith("Everything that is needed is there. Next: featurestore demo --quick\n")
    assert not (tmp_path / "new").exists() and list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_line_that_installs_it(capsys, tmp_path, without):
    without("polars")
    lacking = state(doctor.packages())
    assert lacking == {
        "polars": ("missing", "not installed, expected >=1.30", "pip install 'polars>=1.30'")
    }
    status, out, err = run(capsys, "doctor", "--store", tmp_path)
    # The last paragraph: what is needed first, then what some commands lack on this machine.
    optional = [one.mend for one in [*doctor.extras(), *doctor.disk(tmp_path)] if one.mend]
    last = out.rpartition("\n\n")[2].splitlines()
    assert last == [
        "Needed:   pip install 'polars>=1.30'",
        *(f"Optional: {mend}" for mend in dict.fromkeys(optional)),
    ]
    assert (status, err, "Everything" in out) == (1, "", False)


def test_an_old_package_is_named_with_what_was_expected(without):
    without("duckdb", "1.1.0")
    assert state(doctor.packages())["duckdb"] == (
        "missing",
        "1.1.0, expected >=1.5",
        "pip install 'duckdb>=1.5'",
    )


def test_an_extra_is_optional(without, capsys, tmp_path, monkeypatch):
    without("pyspark")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lacking = state(doctor.extras())
    assert lacking["pyspark (spark)"][0::2] == ("optional", "pip install 'featurestore[spark]'")
    assert lacking["java (spark)"][1] == "not found"
    status, out, _ = run(capsys, "doctor", "--store", tmp_path)
    assert (status, "Optional: pip install 'featurestore[spark]'" in out) == (0, True)


def test_another_distribution_of_the_same_name_is_found(monkeypatch):
    owners = {"queries": ["queries", "featurestore"], "sae": ["featurestore"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    ((what, (kind, found, mend)),) = state(doctor.names()).items()
    assert (what, kind, found) == ("the name queries", "missing", "is also of queries")
    assert mend.startswith("pip uninstall queries; pip install --force-reinstall")


def test_a_disk_that_is_nearly_full_or_has_no_links(monkeypatch, tmp_path):
    usage = SimpleNamespace(total=100, used=99, free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert state(doctor.disk(tmp_path))["disk for stores"] == (
        "optional", f"1.0 GB free at {tmp_path}", "free some, or use another --store"
    )  # fmt: skip

    def refuse(path, data):
        raise DiskError("no hard links")

    monkeypatch.setattr(durable, "create_once", refuse)
    kind, found, mend = state(doctor.disk(tmp_path))["hard links and locks"]
    assert (kind, "no hard links" in found) == ("missing", True)
    assert "another file system" in mend
