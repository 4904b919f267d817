"""Dashboards, recording rules and alerts: said once here, written out as JSON and YAML by `python -m dashboards`."""
