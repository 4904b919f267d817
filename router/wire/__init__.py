"""Bytes to facts and back: what Ollama's routes say, read and spliced without parsing more than must be known."""
