"""The one loop: batches, memory, progress, interrupts, partial results, shards, resuming, and what drives a model."""
