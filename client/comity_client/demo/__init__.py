"""`comity demo`: three hospitals and a coordinator as real processes on this machine."""
