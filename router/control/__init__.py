"""Loops on a timer, never on a request: probing, placing, beating, and the one place that holds the fleet's picture."""
