"""Rows as a caller asks for them: of how many entries, packed or not."""

import asyncio

from latentforge.teacher_client.sparse_rows import LogprobDtype, PackedRows, SparseRows


async def fitted(
    rows: SparseRows | PackedRows, top_k: int, dtype: LogprobDtype, *, packed: bool
) -> SparseRows | PackedRows:
    """The rows with ``top_k`` entries, packed if that is wanted. Packed rows that fit are passed on as they are."""
    if rows.top_k == top_k and (isinstance(rows, PackedRows) or not packed):
        return rows

    def fit() -> SparseRows | PackedRows:
        unpacked = rows.unpacked() if isinstance(rows, PackedRows) else rows
        narrow = unpacked.narrowed(top_k)
        return PackedRows.of(narrow, dtype) if packed else narrow

    # Packing and unpacking take a thread's time, narrowing makes views.
    return await asyncio.to_thread(fit) if packed or isinstance(rows, PackedRows) else fit()
