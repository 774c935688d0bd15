"""Networks and tasks."""
