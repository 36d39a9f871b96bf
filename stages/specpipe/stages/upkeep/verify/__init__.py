"""Reading a whole dump and naming each object that is damaged."""
