"""Where a forward pass runs."""
