from tests.torture import mutants, races


def test_a_store_that_was_changed_and_sealed_again_is_refused_or_read_as_what_it_says(tmp_path):
    report = mutants.mutate(tmp_path, 60)
    assert report.wrong == []
    assert (
        report.mutants == 60 and report.ways > 240 and report.refused > 60
    )  # about five ways each


def test_every_pair_of_writers_leaves_what_is_committed_as_it_is(tmp_path):
    outcome = races.race(tmp_path, rounds=1)
    assert outcome.tried == 36 and outcome.broken == []
