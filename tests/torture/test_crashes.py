import errno

import pytest

from tests.torture import crashes

SCENARIOS = {
    "append": crashes.append_shards,
    "fill": crashes.fill_shards,
    "supersede": crashes.supersede_scores,
    "compact": crashes.compact_shards,
}


@pytest.fixture(params=["append", "fill", "supersede", "compact", "unpack"])
def scenario(request, tmp_path):
    return SCENARIOS.get(request.param) or crashes.unpack_bundle(crashes.make_bundle(tmp_path))


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
