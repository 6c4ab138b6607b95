"""The one room that writes to disk: files that are whole or absent, also after a power cut
(docs/format.md, section 3).

Nothing committed is ever replaced: a name is claimed before bytes are placed under it, and whoever
asks for a committed file to be written is refused.
"""

from featurestore.format.durable.claims import TEMPORARY, Claim, Reading, clear_dead
from featurestore.format.durable.directories import (
    link_file,
    make_directory,
    new_directory,
    remove_empty,
    remove_tree,
    rename_directory,
    set_aside,
    sync_tree,
)
from featurestore.format.durable.disk import disk_errors, nearest_existing
from featurestore.format.durable.files import (
    AnyOrderFile,
    Written,
    check_file,
    create_once,
    hash_only,
    place_file,
    remove,
    remove_all,
    write_bytes,
    write_file,
)
from featurestore.format.durable.places import LEDGER

__all__ = [
    "LEDGER",
    "TEMPORARY",
    "AnyOrderFile",
    "Claim",
    "Reading",
    "Written",
    "check_file",
    "clear_dead",
    "create_once",
    "disk_errors",
    "hash_only",
    "link_file",
    "make_directory",
    "nearest_existing",
    "new_directory",
    "place_file",
    "remove",
    "remove_all",
    "remove_empty",
    "remove_tree",
    "rename_directory",
    "set_aside",
    "sync_tree",
    "write_bytes",
    "write_file",
]
