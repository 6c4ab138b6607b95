"""SQL over a store: sessions, importance of features for concepts, selections."""
