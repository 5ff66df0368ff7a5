"""Rollouts: the rounds in which the student answers prompts itself, their files and what they show."""
