class Arena:
    row_bytes: int
    max_rows: int
    live: int
    slab_count: int
    nbytes: int
    def __new__(cls, initial: bytes, max_rows: int) -> Arena: ...
