"""Retention: what a run left here goes when the time that its agreement names has passed."""
