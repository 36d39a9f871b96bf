"""Arrays in chunks, one object each, in Zarr or in Parquet."""
