"""Files written whole, cache folders, redaction, ranks and host memory: what belongs to no one subject."""
