import errno
from functools import partial

import pytest

from tests.torture import crashes

TWO = {"n_shards": 2}
"""of each table: the one that makes its directories, and one that finds them; `make torture` has
three"""
SCENARIOS = {
    "append": partial(crashes.append_shards, **TWO),
    "fill": crashes.fill_shards,
    "supersede": crashes.supersede_scores,
    "compact": partial(crashes.compact_shards, **TWO),
}


@pytest.fixture(params=["append", "fill", "supersede", "compact", "unpack"])
def scenario(request, tmp_path):
    return SCENARIOS.get(request.param) or crashes.unpack_bundle(
        crashes.make_bundle(tmp_path, **TWO)
    )


def test_no_power_cut_breaks_a_store(scenario, tmp_path):
    outcome = crashes.cut_power(scenario, tmp_path, states_per_moment=1)
    assert outcome.tried > 40 and outcome.broken == []


def test_every_sync_is_needed(scenario, tmp_path):
    sites = crashes.sync_sites(scenario, tmp_path)
    assert sites
    for number, site in enumerate(sites):
        (tmp_path / str(number)).mkdir()
        outcome = crashes.cut_power(
            scenario, tmp_path / str(number), 6, ignored_site=site, stop_at_first=True
        )
        assert outcome.broken, f"without the sync of {site} nothing breaks"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, 0])
def test_no_refused_operation_damages_a_store(scenario, tmp_path, error):
    outcome = crashes.refuse_each(scenario, tmp_path, error)
    assert outcome.tried >= 5 and outcome.broken == []
