"""One YAML per use, each with its exact command in the header, and the generators they name."""
