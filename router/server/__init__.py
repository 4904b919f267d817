"""The service's face: clients' connections, inference routes, the catalog, and what probes and Prometheus read."""
