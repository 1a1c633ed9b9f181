"""The service model fitted to measurements: its factors, how sure they are, and how far off it is."""
