from tests.torture import flips


def test_a_damaged_file_is_read_by_nobody(tmp_path):
    flips.make(tmp_path / "store")
    outcome = flips.damage(tmp_path / "store", 250)
    assert outcome.tried > 500 and outcome.broken == []
