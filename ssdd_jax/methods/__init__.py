"""What moves a distilled set: an interface, and a file per method."""
