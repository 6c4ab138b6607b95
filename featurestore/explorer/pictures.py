"""The samples' pictures and their thumbnails, by reference: nothing is inlined into an answer."""

import io
import threading
from collections import OrderedDict
from typing import Any

from featurestore.errors import QueryError
from featurestore.format.footers import read_schema, read_table
from featurestore.format.records import Record
from featurestore.store import Store

SIZES = (96, 192, 384)
_KEPT_BYTES = 96 * 2**20


class Pictures:
    """Reads pictures shard by shard, each shard verified, and keeps the bytes that were asked for
    last."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._records: dict[int, Record] = {}
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, sample: int, size: int) -> bytes:
        """Return a sample's picture: as PNG as it was kept (size 0), or as a thumbnail of at most
        ``size`` pixels.

        Raises:
            QueryError: there is no such sample, it has no picture, or there is no such size.
            DamageError: the file is not what its record says.
        """
        if size and size not in SIZES:
            raise QueryError(
                f"pictures come in the sizes {', '.join(map(str, SIZES))}, not {size}."
            )
        with self._lock:
            if (sample, size) not in self._kept:
                self._read_shard(sample, size)
            self._kept.move_to_end((sample, size))
            return self._kept[sample, size]

    def _read_shard(self, sample: int, size: int) -> None:
        record = self._record(sample)
        self.store.check([record])
        (path,) = self.store.paths(record)
        if "image" not in read_schema(path).names:
            raise QueryError(
                "the samples of this store have no pictures: collect them with --images."
            )
        rows = read_table(path, ["sample_id", "image"])
        for found, image in zip(
            rows["sample_id"].to_pylist(), rows["image"].to_pylist(), strict=True
        ):
            if image is None or image["bytes"] is None:
                continue
            data = image["bytes"] if size == 0 else thumbnail(image["bytes"], size)
            if (found, size) not in self._kept:
                self._kept[found, size] = data
                self._bytes += len(data)
        if (sample, size) not in self._kept:
            raise QueryError(f"sample {sample} has no picture.")
        self._kept.move_to_end((sample, size))
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)

    def _record(self, sample: int) -> Record:
        if sample not in self._records:
            self._records = {
                i: record for record in self.store.records("samples") for i in record.sample_ids
            }
        if sample not in self._records:
            raise QueryError(f"{self.store.root} has no sample {sample}.")
        return self._records[sample]


def thumbnail(png: bytes, size: int) -> bytes:
    """Return a picture as WebP, at most ``size`` pixels each way; one that is not larger stays the
    PNG that it is."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= size:
            return png
        picture = image.convert("RGB")
    sink = io.BytesIO()
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    picture.save(sink, "WEBP", quality=82)
    return sink.getvalue()


def media_type(data: bytes) -> str:
    """Return what a picture's bytes are."""
    return "image/webp" if data[8:12] == b"WEBP" else "image/png"


def samples_table(store: Store) -> Any:
    """Return the samples without their pictures, as an Arrow table: id, prompt, seed and one column
    a family.

    Raises:
        TableError: nothing was collected yet.
        DamageError: a file is not what its record says.
    """
    return store.arrow("samples", ["sample_id", "prompt", "seed", *store.families()])
