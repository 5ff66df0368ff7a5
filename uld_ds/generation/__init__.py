"""Generated answers of a model to prompts: decoding, and the folder that keeps the answers."""
