"""This organisation's own rules, and changing them without a restart."""
