"""Level `serve`: a real vLLM decodes with the artifact and must agree with the replay."""
