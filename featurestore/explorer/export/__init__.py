"""The explorer as a folder for any static host: the same page, with answers computed now and read
as Parquet files."""

from featurestore.explorer.export.folder import FEATURES, SAMPLES, Written, export

__all__ = ["FEATURES", "SAMPLES", "Written", "export"]
