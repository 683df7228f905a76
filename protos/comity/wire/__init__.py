"""Identifiers, instants, canonical bytes and the error catalogue, shared by every part."""
