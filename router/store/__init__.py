"""What replicas share: slots, lines, leases and grants, behind one contract."""
