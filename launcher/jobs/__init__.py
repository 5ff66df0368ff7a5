"""Ray's job API: sending a recipe to a cluster, following it, and seeing what runs there."""
