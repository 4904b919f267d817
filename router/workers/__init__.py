"""Many router processes on one machine under one parent: it starts and restarts them, and answers for all of them."""
