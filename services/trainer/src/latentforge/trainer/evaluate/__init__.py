"""What `trainer evaluate` measures, each measure importable by itself."""
