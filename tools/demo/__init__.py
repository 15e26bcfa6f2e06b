"""From nothing to a served student: the whole job on one machine, for real."""
