"""P-EAGLE: EAGLE-3's layers with masked rows behind each start, which draft in one pass."""
