"""Talking to one node: connections, their pool, the passage of one answer, and control calls."""
