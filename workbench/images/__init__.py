"""Pictures in prompts: opening them, and which part of a picture each visual token shows."""
