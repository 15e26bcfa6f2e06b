"""What every part of LatentForge shares and that needs no torch."""
