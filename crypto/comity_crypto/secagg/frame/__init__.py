"""What every profile's round has in common: messages and their reader, transcript, machines' frame, driver."""
