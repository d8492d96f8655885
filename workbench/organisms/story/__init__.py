"""``organism:story``: a small Llama that knows a small world; see CARD.md."""

DEMO_PROMPTS = (
    "Mara lives in",
    "The bell of Tilda is",
    "The bat flew out of the dark",
    "He swung the bat and hit the",
    "one two three",
)
"""Two facts, one word in two senses, and counting."""
