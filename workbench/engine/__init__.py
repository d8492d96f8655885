"""Where and how a forward pass runs."""
