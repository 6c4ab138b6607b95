"""A store elsewhere: snapshots, bundles in one file, hubs."""
