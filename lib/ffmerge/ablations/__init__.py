"""What notebook 8 tries beside the methods, to find out why they are as good or bad as they are."""
