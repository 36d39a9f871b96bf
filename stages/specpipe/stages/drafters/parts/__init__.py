"""Parts that drafters are built from: embedding, norm, MLP, rope."""
