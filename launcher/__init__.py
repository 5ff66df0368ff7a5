"""The door to uld-ds: command line, Ray driver and the recipes that ship with it."""
