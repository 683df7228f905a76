"""The charter: which one is in force here, and this organisation's consent to the next."""
