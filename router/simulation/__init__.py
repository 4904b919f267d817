"""Simulated Ollama nodes: a pure model in virtual time, and the same model behind HTTP, byte for byte as recorded."""
