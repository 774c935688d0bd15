"""A model in service: files for other programs, and a server."""
