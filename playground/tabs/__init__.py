"""The tabs of the page, one file each: what it shows, and what its controls do."""
