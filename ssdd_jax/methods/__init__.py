"""What moves a distilled set."""
