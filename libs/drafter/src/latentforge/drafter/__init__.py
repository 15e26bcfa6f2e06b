"""A student in front of its teacher: drafts for texts as they grow."""
