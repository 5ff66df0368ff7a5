"""What a person sees at a terminal: progress, summaries, help."""
