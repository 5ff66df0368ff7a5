"""Drivers: what runs on the node that a command was given on, from first check to last line."""
