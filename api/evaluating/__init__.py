"""``eval``: perplexity, tasks, generated text and speed of models, and what lies between them."""
