"""Look at a store in a browser: a small server over ``queries``, and its page
(docs/explorer.md)."""
