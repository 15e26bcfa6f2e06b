"""A local server of Venice's published chat API, as strict as its description, over a real model: no network needed."""
