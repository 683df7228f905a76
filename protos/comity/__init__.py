"""The wire: what organisations and the coordinator say to each other. Depends on nothing else of Comity."""
