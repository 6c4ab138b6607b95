"""Keep a store sound: verify it, repair it, compact its shards, correct its labels."""
