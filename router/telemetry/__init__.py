"""What the outside may see of calls, nodes and this process: metrics and log lines. Decides nothing, stops nothing."""
