"""What the router costs, beside nginx and named rivals, in one run. `python -m bench`."""
