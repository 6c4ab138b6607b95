"""A store: create, open, append shards, list, read."""

from featurestore.store.store import Store

__all__ = ["Store"]
