"""Where nodes come from. Each source yields whole sets of nodes, never differences."""
