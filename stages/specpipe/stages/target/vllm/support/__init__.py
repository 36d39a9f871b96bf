"""What vLLM can run and serve, known without starting it."""
