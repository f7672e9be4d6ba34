"""What a frozen model does on a group of patients."""
