"""Training beside what it is compared with: ``make bench-trainer``."""
