"""The attention of all drafters: queries of starts over their context and keys of their own."""
