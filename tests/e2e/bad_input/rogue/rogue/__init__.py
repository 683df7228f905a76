"""An app for the tests of bad input."""
