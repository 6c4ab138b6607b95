"""What is made once codes are there, so that no question has to wait for it."""

from featurestore.store import Store
from queries.derived.by_feature import keep_by_feature
from queries.derived.candidates import keep_candidates
from queries.derived.sums import keep_sums


def keep_derived(store: Store, sae: str, progress: bool = False) -> None:
    """Make the tables that scores, and questions about one feature, are answered from: sums and
    totals of every family, what is ordered by feature, and the sums of what scores best; those
    that are up to date stay.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    keep_sums(store, sae, progress=progress)
    keep_by_feature(store, sae, progress=progress)
    keep_candidates(store, sae)
