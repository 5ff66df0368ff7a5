"""Ray workers: what runs on each of them; they wire the other packages and decide nothing."""
