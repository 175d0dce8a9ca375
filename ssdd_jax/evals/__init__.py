"""How good a distilled set is: student pretraining and the protocols that read the student's representation."""
