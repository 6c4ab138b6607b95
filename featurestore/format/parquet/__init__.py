"""Parquet files: their layout, tensors in them, footers and pages looked through byte by byte."""
