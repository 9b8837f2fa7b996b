"""What synthetic images are for, and what they are worth there."""
