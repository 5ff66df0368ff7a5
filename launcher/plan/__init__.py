"""What a recipe will take, before anything is started: memory, traffic, time, and what to change if it does not fit."""
