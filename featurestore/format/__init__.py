"""The bytes of a store: schemas, commit records, durable writes, Parquet, memory maps,
checksums."""
