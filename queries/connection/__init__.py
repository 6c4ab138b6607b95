"""DuckDB over a store: connections to its verified files, a user's statements, stopping them."""
