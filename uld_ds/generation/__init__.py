"""Answers of a model to prompts: decoding, and keeping what was answered."""
