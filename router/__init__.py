"""A routing proxy in front of a pool of Ollama nodes."""

__version__ = "0.1.0"
