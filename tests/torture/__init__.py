"""What a store survives: `make torture` for the long form, the tests here for the short one
(docs/reliability.md)."""
