"""The target in vLLM: engine, plugin, connector, and the memory that states leave it through."""
