"""The rows that were asked for last, in the gateway's own memory."""

from collections import OrderedDict

from latentforge.teacher_client.sparse_rows import PackedRows


class RecentRows:
    """Packed rows by key, at most ``max_bytes`` of them; those not asked for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[bytes, PackedRows] = OrderedDict()

    def get(self, key: bytes) -> PackedRows | None:
        rows = self._rows.get(key)
        if rows is not None:
            self._rows.move_to_end(key)
        return rows

    def put(self, key: bytes, rows: PackedRows) -> None:
        before = self._rows.pop(key, None)
        if before is not None:
            self._bytes -= len(before.data)
        if len(rows.data) > self._max_bytes:
            return
        self._rows[key] = rows
        self._bytes += len(rows.data)
        while self._bytes > self._max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self._bytes -= len(oldest.data)
