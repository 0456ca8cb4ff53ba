"""The compiled engine: state rows, networks, heads, threads. Its sources are in src_pyx."""
