"""What we believe about nodes and who waits for them: frozen values, no I/O, no clock."""
