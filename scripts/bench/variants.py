"""The ways to store a shard that are measured."""

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "zarr, final": {},
    "zarr, topk:64": {"logits": "topk:64"},
    "zarr, final, int8": {"states_dtype": "int8"},
    "zarr, final, zstd": {"compression": "zstd"},
    "parquet, final": {"shard_format": "parquet"},
    "parquet, final, zstd": {"shard_format": "parquet", "compression": "zstd"},
}
