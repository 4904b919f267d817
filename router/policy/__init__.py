"""Decisions: pure functions of facts, time and chance. Nothing here awaits, logs or reads a clock."""
