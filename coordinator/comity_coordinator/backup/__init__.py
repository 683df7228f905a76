"""Backup and restore of a coordinator: one portable folder, the same for every database."""
