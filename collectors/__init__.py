"""Run a pipeline over prompts and keep its activations, in shards."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

if TYPE_CHECKING:
    from collectors.collection import collect
    from collectors.keep import CollectSettings
    from collectors.live import train_live
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "CollectSettings": "collectors.keep",
            "collect": "collectors.collection",
            "train_live": "collectors.live",
        },
    )

__all__ = ["CollectSettings", "collect", "train_live"]
